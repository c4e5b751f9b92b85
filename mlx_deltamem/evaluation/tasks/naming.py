"""Decide whether a reply names a value. Only the name counts, not the sentence around it.

A reply is right if it names the value that was asked for and no rival of it:

- Only the first line that is not blank counts. Case, punctuation and the articles a, an and the are ignored.
- The value must occur as whole words: "Ann" does not occur in "Anna", but "green" occurs in "dark green".
- No rival may occur. Rivals are the other values of the same list and the other facts told in the chat, so neither a
  list of guesses nor an old value beside the new one is right. A rival that is part of the value or of the question is
  ignored. A rival with a capital letter must have the capital in the reply too ("will" is not the name Will), unless
  the reply has no capitals at all.
- A reply that denies, or says that it does not know, is wrong even if it names the value.

If nothing can be recalled, because it was never told or must be forgotten, a reply is right if it says that it does not
know, or was not told, and names no rival. Any other denial ("Dr Lee, not far from here") does not count.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

from mlx_deltamem.evaluation.tasks.answers import first_line

_WORD = re.compile(r"\w+")
_ARTICLES = {"a", "an", "the"}
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'"})

_NOT = r"(?: not | cannot | \w+n't | (?:don|didn|haven|hasn|can|won|couldn)t | never | no )"
_LOST = r"none | nothing | unknown | unsure | unable | forgot | forgotten"
_DENIAL = re.compile(rf"\b(?: {_NOT} | {_LOST} | forget )\b", re.VERBOSE)
# A negation, and within the next words of the sentence one that is about knowing or telling.
_KNOWING = r"""(?: tell | told | say | said | mention\w* | know\w* | remember\w* | recall\w* | sure | certain | aware
    | idea | information | records? | memory | memories | access | capab\w+ | ability | able | provide\w* | providing
    | give\w* | shared? | hear\w* | specify | specified | specific )"""
_NOT_TOLD = re.compile(
    rf"\b(?: {_LOST} | to\ forget | {_NOT} \b (?: [^\w.!?]+ \w+ ){{0,6}}? [^\w.!?]+ {_KNOWING} )\b", re.VERBOSE
)


def names_only(reply: str, value: str, rivals: Iterable[str], question: str) -> bool:
    """Whether a reply names a value and no rival.

    Args:
        reply: The reply.
        value: The value that was asked for.
        rivals: The rivals. The value itself may be among them.
        question: The text of the question, which a reply may repeat.
    """
    line = first_line(reply)
    # Without the value, because some values look like a denial ("forget-me-nots").
    rest = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", " ", line, flags=re.IGNORECASE)
    if denies(rest) or not names(line, value):
        return False
    return not names_any(line, rivals, f"{value}\n{question}")


def names(reply: str, value: str) -> bool:
    """Whether a value occurs in the first line of a reply, as whole words."""
    return _inside(_folded(value), _folded(first_line(reply)))


def names_any(reply: str, rivals: Iterable[str], allowed: str) -> bool:
    """Whether a rival occurs in the first line of a reply. Rivals that occur in the text `allowed` are ignored."""
    words, allowed_words = _words(first_line(reply)), _folded(allowed)
    folded = tuple(word.casefold() for word in words)
    capitals = any(word != word.casefold() for word in words)
    return any(
        _inside(_words(rival), words) if capitals and rival[:1].isupper() else _inside(_folded(rival), folded)
        for rival in rivals
        if not _inside(_folded(rival), allowed_words)
    )


def denies(reply: str) -> bool:
    """Whether the first line of a reply denies anything."""
    return bool(_DENIAL.search(_plain(reply)))


def says_not_told(reply: str) -> bool:
    """Whether the first line of a reply says that something is unknown, not told or forgotten."""
    return bool(_NOT_TOLD.search(_plain(reply)))


def _plain(reply: str) -> str:
    """The first line of a reply with plain apostrophes, ignoring case."""
    return first_line(reply).translate(_APOSTROPHES).casefold()


@functools.lru_cache(maxsize=10_000)
def _words(text: str) -> tuple[str, ...]:
    """The words of a text without articles, in their spelling."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text))
    return tuple(word for word in words if word.casefold() not in _ARTICLES)


def _folded(text: str) -> tuple[str, ...]:
    """The words of a text without articles, ignoring case."""
    return tuple(word.casefold() for word in _words(text))


def _inside(part: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether words occur in other words in the same order, one directly after the other."""
    return bool(part) and any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))
