"""How all figures look: sizes, colours, fonts and titles; and how they are saved."""

import functools
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from mlx_deltamem.files.atomic import new_file


class LineStyle(TypedDict, total=False):
    """Keyword arguments of `Axes.plot` for one line."""

    color: str
    linestyle: str
    marker: str
    markevery: int


class BandStyle(TypedDict):
    """Keyword arguments of `Axes.fill_between` and `Axes.bar` for a range."""

    color: str
    linewidth: float


# Inches: the width of the text on a page, and the largest width of a figure.
WIDTH, LARGEST_WIDTH = 7.2, 11.0
# Points; no text is smaller than SMALL.
SMALL, NORMAL, LARGE = 7, 8, 9
# Characters of a title that fit into an inch, from average letters to the widest ones; they are tried in this order.
_CHARACTERS_PER_INCH = (13, 10, 7)
# This colour map can be read in greyscale.
SEQUENTIAL = "cividis"
# White in the middle, orange for positive numbers as in the terminal; readers of any colour vision can tell its ends.
DIVERGING = "PuOr_r"
# The palette of M. Okabe and K. Ito. Dashes and markers tell the lines apart without colours.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
LINES: tuple[LineStyle, ...] = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": ":", "marker": "^"},
)
BAND: BandStyle = {"color": "#D0D0D0", "linewidth": 0}
_DARK_BACK, _DARK_INK, _DARK_BAND, _DARK_BLUE = "#16181C", "#E6E6E6", "#454A52", "#56B4E9"

# Without a date in it, a file has the same bytes when the figure is drawn again.
_UNDATED: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
# Fonts whose signs are not the characters at their places.
_NO_TEXT = ("Last Resort", "LastResort", "cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10", "STIX")
_NORMAL_WEIGHT = 400

# A decorator: it gives the common style to the figures that a function builds or saves.
styled = rc_context(
    {
        "font.family": ["DejaVu Sans"],
        "font.size": NORMAL,
        "axes.titlesize": NORMAL,
        "axes.titlelocation": "left",
        "axes.labelsize": NORMAL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "figure.titlesize": LARGE,
        "figure.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.2,
        "lines.markersize": 3,
        "savefig.dpi": 200,
        # Text stays text in a PDF, so that it can be searched and edited.
        "pdf.fonttype": 42,
        # With a fixed salt the ids in an SVG are the same when the figure is drawn again.
        "svg.hashsalt": "mlx_deltamem",
    }
)


def use_dark() -> None:
    """Draw and save all further figures of this process on a dark ground, with light text and lighter blue lines."""
    rcParams.update(
        {
            "text.color": _DARK_INK,
            "axes.edgecolor": _DARK_INK,
            "axes.labelcolor": _DARK_INK,
            "axes.titlecolor": _DARK_INK,
            "xtick.color": _DARK_INK,
            "ytick.color": _DARK_INK,
            "axes.facecolor": _DARK_BACK,
            "savefig.facecolor": _DARK_BACK,
            "savefig.edgecolor": _DARK_BACK,
        }
    )
    BAND["color"] = _DARK_BAND
    LINES[0]["color"] = _DARK_BLUE


def add_title(figure: Figure, text: str) -> None:
    """Write a title over a new figure, in as many lines as it needs; the figure grows with the lines.

    Args:
        figure: A figure without a title.
        text: The title. It may hold the names of files, so any characters.
    """
    families, missing = families_for(text)
    drawable = "".join("?" if character in missing else character for character in text)
    title = figure.suptitle("", x=0.01, ha="left", family=families, parse_math=False)
    for characters in _CHARACTERS_PER_INCH:
        title.set_text(textwrap.fill(drawable, int(figure.get_figwidth() * characters)))
        if title.get_window_extent().x1 <= figure.bbox.x1:
            break
    # The figure grows, so that the charts below keep their room.
    more_lines = title.get_text().count("\n")
    figure.set_figheight(figure.get_figheight() + more_lines * LARGE * 1.3 / 72)


def limits(numbers: np.ndarray, least_room: float) -> tuple[float, float]:
    """The limits of an axis that fits closely around some numbers.

    Args:
        numbers: An array of any shape. Numbers that are not finite are ignored.
        least_room: The least distance between the numbers and each limit. So a line of equal numbers has a scale too.

    Returns:
        The lower and the upper limit; 0 and 1 if no number is finite.
    """
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    room = max(least_room, 0.1 * (high - low))
    return low - room, high + room


@styled
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's ending. The file is replaced as a whole or not at all.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    ending = path.suffix.lower()
    with new_file(path) as temporary:
        figure.savefig(temporary, format=ending.removeprefix("."), metadata=_UNDATED[ending])


def marked(style: LineStyle, points: int) -> LineStyle:
    """The style of a line with so many points; at most about 40 of them get a marker, so that markers stay apart."""
    return {**style, "markevery": max(1, points // 40)}


def families_for(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """The font families that are needed to draw some texts, in any script, from the installed fonts.

    Returns:
        The families, the common one first; and the characters that no installed font has.
    """
    # A name alone, without a list, would be read as a pattern.
    families = list(rcParams["font.family"])
    missing = set("".join(texts)) - _characters(findfont(FontProperties(family=families)))
    for entry in sorted(fontManager.ttflist, key=_distance_from_normal):
        if not missing:
            break
        if entry.name in families or entry.name.startswith(_NO_TEXT):
            continue
        if found := missing & _characters(entry.fname):
            families.append(entry.name)
            missing -= found
    return families, missing


def _distance_from_normal(entry: FontEntry) -> tuple[bool, int]:
    weight = entry.weight if isinstance(entry.weight, int) else _NORMAL_WEIGHT
    return entry.style != "normal", abs(weight - _NORMAL_WEIGHT)


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """The characters that a font file can draw; none if matplotlib cannot use it (such as coloured pictures)."""
    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (RuntimeError, OSError):
        return frozenset()
