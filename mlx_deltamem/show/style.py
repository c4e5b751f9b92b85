"""How all figures look, and how they are saved."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.show.fonts import families_for

# Inches; the text of a page, and the most that a wide figure may take.
WIDTH, LARGEST_WIDTH = 7.2, 11.0
# Points. Nothing is smaller than SMALL.
SMALL, NORMAL, LARGE = 7, 8, 9
# Of the title: what fits if they are as wide as usual, and if they are as wide as can be.
_CHARACTERS_PER_INCH = (13, 10, 7)
# Told apart in greyscale too.
SEQUENTIAL = "cividis"
# Light in the middle; readers with any colour vision tell its ends apart. Positive is orange, as in the terminal.
DIVERGING = "PuOr_r"
# M. Okabe and K. Ito's colours, with dashes and markers that tell lines apart without them.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
LINES = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": ":", "marker": "^"},
)
BAND = {"color": "#D0D0D0", "linewidth": 0}

_STYLE = {
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
    # Text that can be searched and edited, and files that are the same when they are drawn again.
    "pdf.fonttype": 42,
    "svg.hashsalt": "mlx_deltamem",
}
_UNDATED = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

# Makes a function that builds a figure build it in the common style.
styled: Callable = rc_context(_STYLE)


def add_title(figure: Figure, text: str) -> None:
    """Write a title over a new figure, which grows if it is long. Names of files may be in it."""
    families, missing = families_for(text)
    drawable = "".join("?" if character in missing else character for character in text)
    title = figure.suptitle("", x=0.01, ha="left", family=families, parse_math=False)
    for characters in _CHARACTERS_PER_INCH:
        title.set_text(textwrap.fill(drawable, int(figure.get_figwidth() * characters)))
        if title.get_window_extent().x1 <= figure.bbox.x1:
            break
    # More lines must not take the room of what is below.
    more_lines = title.get_text().count("\n")
    figure.set_figheight(figure.get_figheight() + more_lines * LARGE * 1.3 / 72)


def limits(numbers: np.ndarray, least_room: float) -> tuple[float, float]:
    """The limits of an axis that shows numbers closely; those that are not finite do not matter.

    Args:
        numbers: Any shape.
        least_room: The least room below and above them, so that a number that never changes has a scale to read.
    """
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    room = max(least_room, 0.1 * (high - low))
    return low - room, high + room


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format that the file's ending names.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    ending = path.suffix.lower()
    with new_file(path) as temporary, rc_context(_STYLE):
        figure.savefig(temporary, format=ending.removeprefix("."), metadata=_UNDATED[ending])


def marked(style: dict[str, str], points: int) -> dict[str, object]:
    """The style of a line, whose markers are spread out where they would touch."""
    return {**style, "markevery": max(1, points // 40)}
