"""Invented values. A model that is trained only on the values of lists memorises them, and recalls no other value."""

import random
from collections.abc import Iterable, Sequence

from .split import Side, side_of

# The forms of a value with their relative frequencies: a word, two joined words, and two separate words.
_FORMS = {"{first}": 3, "{first}{second}": 1, "{first} {second}": 1}
_TRIES = 10_000
# The space before a word: "▁" in SentencePiece and "Ġ" in byte-level tokenizers.
_SPACES = ("\u2581", "\u0120")


def words_of(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Return the words that are a single token of a tokenizer's vocabulary within a sentence, sorted.

    A word has 3 or more ASCII letters in lower case.
    """
    words = (token[1:] for token in vocabulary if token.startswith(_SPACES))
    return tuple(
        sorted({word for word in words if len(word) > 2 and word.isascii() and word.islower() and word.isalpha()})
    )


def invent(rng: random.Random, words: Sequence[str], side: Side, like: str) -> str:
    """Invent a value from `words`, on a side of the split, with a capital if `like` has one.

    Raises:
        ValueError: The words give no value on this side.
    """
    for _ in range(_TRIES):
        form = rng.choices(list(_FORMS), list(_FORMS.values()))[0]
        first, second = rng.choice(words), rng.choice(words)
        value = form.format(first=first, second=second)
        # No part of the value may be on the other side.
        if {side_of(part) for part in (first, second, value)} == {side}:
            return value[:1].upper() + value[1:] if like[:1].isupper() else value
    raise ValueError(f"no {side} value can be made of the {len(words)} given words; give more words")
