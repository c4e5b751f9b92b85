"""Whether a reply names a value: the name counts, not the sentence around it.

A reply is right where it names the value that was asked for and nothing else that could be meant:

- Only its first line with something in it counts. Case, punctuation and the articles a, an and the do not.
- The value must be there as whole words: "Ann" is not in "Anna", and "green" is in "dark green".
- None of the rivals may be there (other values that the question could be about, and what else was told in the chat),
  so that neither a list of guesses nor an old value beside the new one is right. A rival within the value or the
  question itself does not count. One that is written with a capital must have one in the reply ("will" is no name),
  unless the reply has no capitals at all.
- A reply that says that it does not know, or that denies, is wrong, whatever it names.

Where nothing can be recalled (it was never told, or is to be forgotten), a reply is right where it says that it does
not know, or must not, and names no rival.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

from mlx_deltamem.evaluation.tasks.answers import first_line

_WORD = re.compile(r"\w+")
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'"})

_UNKNOWN = re.compile(
    r"""\b(?: not | cannot | \w+n't | (?:don|didn|haven|hasn|can|won|couldn)t | never | no | none | nothing
    | unknown | unsure | unable | forget | forgot | forgotten )\b""",
    re.VERBOSE,
)


def names_only(reply: str, value: str, rivals: Iterable[str], question: str) -> bool:
    """Whether a reply names a value and no rival of it.

    Args:
        reply: The reply.
        value: The value that was asked for.
        rivals: Other values; the value itself may be among them.
        question: What was asked, which a reply may repeat.
    """
    line = first_line(reply)
    # Some values look like a denial ("forget-me-nots").
    if says_unknown(re.sub(re.escape(value), " ", line, flags=re.IGNORECASE)) or not names(line, value):
        return False
    return not names_any(line, rivals, f"{value}\n{question}")


def names(reply: str, value: str) -> bool:
    """Whether the first line of a reply has a value in it, as whole words."""
    return _inside(_folded(value), _folded(first_line(reply)))


def names_any(reply: str, rivals: Iterable[str], allowed: str) -> bool:
    """Whether the first line of a reply names one of the rivals that are not in `allowed`."""
    words, allowed_words = _words(first_line(reply)), _folded(allowed)
    folded = tuple(word.casefold() for word in words)
    capitals = any(word != word.casefold() for word in words)
    return any(
        _inside(_words(rival), words) if capitals and rival[:1].isupper() else _inside(_folded(rival), folded)
        for rival in rivals
        if not _inside(_folded(rival), allowed_words)
    )


def says_unknown(reply: str) -> bool:
    """Whether the first line of a reply says that something is not known, not told, not so, or forgotten."""
    return bool(_UNKNOWN.search(first_line(reply).translate(_APOSTROPHES).casefold()))


@functools.lru_cache(maxsize=10_000)
def _words(text: str) -> tuple[str, ...]:
    """The words of a text without its articles, as they are written."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text))
    return tuple(word for word in words if word.casefold() not in _ARTICLES)


def _folded(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _words(text))


def _inside(part: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether words follow each other somewhere in others."""
    return bool(part) and any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))
