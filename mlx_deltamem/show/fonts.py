"""Fonts for texts in any script: what the usual font lacks is taken from the fonts that are installed."""

import functools
from collections.abc import Iterable

from matplotlib import rcParams
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

# Fonts of signs for other purposes: what they have at a character's place is not the character.
_NO_TEXT = ("Last Resort", "LastResort", "cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10", "STIX")


def families_for(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """The font families to draw some texts with, the usual one first.

    Returns:
        The families, and the characters that none of the installed fonts has.
    """
    # A name given alone would be read as a pattern.
    families = list(rcParams["font.family"])
    missing = set("".join(texts)) - _characters(findfont(FontProperties(family=families)))
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", abs(_weight(entry) - 400))):
        if not missing:
            break
        if entry.name in families or entry.name.startswith(_NO_TEXT):
            continue
        if found := missing & _characters(entry.fname):
            families.append(entry.name)
            missing -= found
    return families, missing


def _weight(entry: FontEntry) -> int:
    return entry.weight if isinstance(entry.weight, int) else 400


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """The characters that a font can draw; none for one that matplotlib cannot use, such as coloured pictures."""
    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (RuntimeError, OSError):
        return frozenset()
