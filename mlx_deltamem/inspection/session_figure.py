"""The figures of a chat: its memory, and the effect of each turn on the memory."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_deltamem.inspection.foreign import ForeignReport
from mlx_deltamem.inspection.session import SessionReport
from mlx_deltamem.sessions.turns.writing import NONE
from mlx_deltamem.show.style import BAND, LINES, SMALL, WIDTH, add_title, limits, marked, styled
from mlx_deltamem.show.tables import count
from mlx_deltamem.show.tiles import StateTiles

# Inches: the height of a chart, and the height of titles, labels and gaps.
_DRIFT_HEIGHT, _BETWEEN = 1.2, 0.8
# The least room above and below the lines of a chart.
_LEAST_ROOM = 0.01


@styled
def session_figure(report: SessionReport) -> Figure:
    """Draw the memory of a chat, and two charts by turn: what was kept of the memory, and how far it moved."""
    tiles = StateTiles(report.arrays, WIDTH)
    heights = [tiles.height + _BETWEEN, 2 * _DRIFT_HEIGHT + _BETWEEN]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    add_title(figure, f"{Path(report.file).name}: {count(len(report.turns), 'turns')}, {report.tokens:,} tokens")
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    memory = above.subplots()
    memory.set_title("The memory after the last turn")
    tiles.draw(memory)
    kept, changed = below.subplots(2, 1, sharex=True)
    _drift(kept, report, "kept", "kept by each token\n(mean keep gate)")
    _drift(changed, report, "changed", "moved by the turn\n(relative to ‖S‖)")
    gaps = "" if all(turn.write != NONE for turn in report.turns) else " (gaps: turns that only read it)"
    kept.set_title(f"What each turn did to it{gaps}")
    if kept.get_legend_handles_labels()[0]:
        kept.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
    changed.set_xlabel("turn")
    return figure


@styled
def memory_figure(report: ForeignReport) -> Figure:
    """Draw the memory of a chat that another implementation saved.

    Raises:
        ValueError: The memory is empty.
    """
    if not report.arrays:
        raise ValueError(f"{report.file} holds an empty memory; there is nothing to draw")
    tiles = StateTiles(report.arrays, WIDTH)
    figure = Figure(figsize=(WIDTH, tiles.height + _BETWEEN), layout="constrained")
    add_title(figure, f"{Path(report.file).name}: the memory")
    tiles.draw(figure.subplots())
    return figure


def _drift(axes: Axes, report: SessionReport, name: str, label: str) -> None:
    """Draw one field of the turns: the median over the layers, and the range from the lowest layer to the highest."""
    axes.set_ylabel(label)
    axes.set_xlim(0.5, max(len(report.turns), 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    numbers = _numbers(report, name)
    known = np.isfinite(numbers).all(axis=1)
    if not known.any():
        axes.text(0.5, 0.5, "no turn wrote it", transform=axes.transAxes, ha="center", size=SMALL)
        return
    turns = np.arange(1, len(numbers) + 1)
    low, middle, high = np.quantile(numbers, [0, 0.5, 1], axis=1)
    # The band is visible only between two turns; the bars show turns that have no neighbour.
    axes.fill_between(turns, low, high, label="all layers", **BAND)
    axes.vlines(turns[known], low[known], high[known], color=BAND["color"])
    axes.plot(turns, middle, label="median layer", **marked(LINES[0], len(turns)))
    axes.set_ylim(limits(numbers, _LEAST_ROOM))


def _numbers(report: SessionReport, name: str) -> np.ndarray:
    """`[turns, layers]`, one field of the turns; NaN for turns that wrote nothing or lack the field."""
    unknown = [math.nan] * len(report.states)
    drift = [getattr(turn, name) if turn.write != NONE else None for turn in report.turns]
    rows = [unknown if numbers is None else list(numbers.values()) for numbers in drift]
    return np.array(rows, np.float64).reshape(-1, len(unknown))
