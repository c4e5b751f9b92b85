"""Draws values from patterns: names, codes, times, prices ... The files in `kinds/` have the patterns."""

import random
import re
from functools import cache

from mlx_deltamem.recall.vocabulary import value_lists
from mlx_deltamem.recall.vocabulary import values as listed

from . import invented, libraries
from .entries import entries

_SLOT = re.compile(r"\{([^{}]+)\}")
_WEIGHT = re.compile(r"(.*?) \*(\d+)")
_NUMBER = re.compile(r"(\d+)-(\d+)(?:/(\d+))?([,p]?)")
_SIGNS = {"L": "ABCDEFGHJKLMNPRSTUVWXYZ", "D": "0123456789", "l": "abcdefghjkmnpqrstuvwxyz"}


class Patterns:
    """Patterns of a value: one on each line, with an optional weight at its end (" *3").

    A slot is another kind; a number from a range (`{10-90}`, in steps `{10-90/5}`, with commas `{1000-9000,}`, padded
    with zeros `{0-59p}`); signs (`{LLD}`: two letters and a digit); a list of mlx_deltamem.recall (`{list:foods}`); or
    an invented word (`{invented:name}`).

    Args:
        name: The name for error messages.
        text: The patterns.

    Raises:
        ValueError: There is no pattern, or a slot is none of these.
    """

    def __init__(self, name: str, text: str):
        found = [_WEIGHT.fullmatch(line) for line in text.splitlines()]
        lines = zip(found, text.splitlines(), strict=True)
        self._patterns = [(match[1], int(match[2])) if match else (line, 1) for match, line in lines if line.strip()]
        if not self._patterns:
            raise ValueError(f"{name} has no patterns; write one a line")
        for pattern, _ in self._patterns:
            for slot in _SLOT.findall(pattern):
                if not _known(slot):
                    raise ValueError(f"{name} has {{{slot}}}, which is not a kind of value, a range, a list or signs")

    @property
    def fixed(self) -> tuple[str, ...]:
        """The patterns without slots: values that are in a list word for word."""
        return tuple(pattern for pattern, _ in self._patterns if not _SLOT.search(pattern))

    def draw(self, rng: random.Random, from_libraries: bool) -> str:
        """Draw a value, which may be on either side of the split."""
        patterns, weights = zip(*self._patterns, strict=True)
        pattern = rng.choices(patterns, weights)[0]
        return _SLOT.sub(lambda match: _drawn(rng, match[1], from_libraries), pattern)


def patterns_of(where: str, what: str, kind: str) -> Patterns:
    """Return the patterns of a kind, which is its name or patterns of its own.

    Args:
        where, what: The place and the values that have the kind, for errors.
        kind: A name in `kinds/`, or patterns.

    Raises:
        ValueError: There is no such kind, or the patterns have a mistake.
    """
    if kind in kinds():
        return kinds()[kind]
    if not {"\n", "{"} & set(kind):
        raise ValueError(f"{where} has {what} of the kind {kind!r}, which no file of kinds/ has")
    return Patterns(where, kind)


@cache
def kinds() -> dict[str, Patterns]:
    """Return every kind of value by its name.

    Raises:
        ValueError: A file has a mistake.
    """
    return {name: Patterns(name, text) for name, text in _texts().items()}


@cache
def _texts() -> dict[str, str]:
    return {name: text for _, name, text in entries("kinds")}


def _known(slot: str) -> bool:
    if slot.startswith("list:"):
        return slot[5:] in value_lists()
    if slot.startswith("invented:"):
        return slot[9:] in invented.KINDS
    return slot in _texts() or bool(_NUMBER.fullmatch(slot)) or set(slot) <= set(_SIGNS)


def _drawn(rng: random.Random, slot: str, from_libraries: bool) -> str:
    if slot.startswith("list:"):
        name = {"first_names": "first_names", "surnames": "surnames", "towns": "towns"}.get(slot[5:])
        return rng.choice(libraries.pool(name) if name and from_libraries else listed(slot[5:]))
    if slot.startswith("invented:"):
        return invented.invent(rng, slot[9:])
    if slot in _texts():
        return kinds()[slot].draw(rng, from_libraries)
    if number := _NUMBER.fullmatch(slot):
        low, high, step, form = number.groups()
        drawn = rng.randrange(int(low), int(high) + 1, int(step or 1))
        return {",": f"{drawn:,}", "p": f"{drawn:0{len(high)}}"}.get(form, str(drawn))
    return "".join(rng.choice(_SIGNS[sign]) for sign in slot)
