"""Invented values: a model that is told only values of lists learns these by heart, rather than to carry any value."""

import random
from collections.abc import Iterable, Sequence

from .split import Side, side_of

# How often a value is one word, two written as one, and two with a space between them.
_FORMS = {"{first}": 3, "{first}{second}": 1, "{first} {second}": 1}
_TRIES = 10_000
# "▁" by SentencePiece and "Ġ" by byte-level tokenizers stand for the space before a word.
_SPACES = ("\u2581", "\u0120")


def words_of(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Return the words that are one token of a tokenizer's vocabulary each, as written within a sentence, in order.

    Words of 3 letters and more, ASCII only, those in lower case alone.
    """
    words = (token[1:] for token in vocabulary if token.startswith(_SPACES))
    return tuple(
        sorted({word for word in words if len(word) > 2 and word.isascii() and word.islower() and word.isalpha()})
    )


def invent(rng: random.Random, words: Sequence[str], side: Side, like: str) -> str:
    """Make a value up from `words`, on a side of the split, with a capital if `like` has one.

    Raises:
        ValueError: The words give no value on this side.
    """
    for _ in range(_TRIES):
        form = rng.choices(list(_FORMS), list(_FORMS.values()))[0]
        first, second = rng.choice(words), rng.choice(words)
        value = form.format(first=first, second=second)
        # Nor may a part of it be a value of the other side.
        if {side_of(part) for part in (first, second, value)} == {side}:
            return value[:1].upper() + value[1:] if like[:1].isupper() else value
    raise ValueError(f"no {side} value can be made of the {len(words)} given words; give more")
