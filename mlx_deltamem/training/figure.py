"""The figure of a training run: losses, held-out answers, gates, states, gradients, learning rate and health."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import HashableList

from mlx_deltamem.show.style import LINES, SMALL, WIDTH, add_title, limits, marked, save_figure, styled

_HEIGHT = 6.5
# The least margin below and above a line, as a share of its largest number.
_LEAST_ROOM = 0.02

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class _Chart:
    """The lines on one pair of axes.

    Attributes:
        title: The title with the unit.
        lines: The labels of the lines, by the name of their number in the metrics.
        limits: The limits of the vertical axis; None: chosen to fit the numbers.
        nothing: The text that is shown if there are no numbers.
    """

    title: str
    lines: dict[str, str]
    limits: tuple[float, float] | None = None
    nothing: str = "nothing was reported"


_CHARTS = (
    _Chart("loss (nats a token)", {"train_loss": "training", "val_loss": "held out"}),
    _Chart(
        "recall of held-out answers (share)",
        {"val_answers": "whole answers", "val_values": "their values"},
        (-0.03, 1.03),
        "no held-out data",
    ),
    _Chart("β, mean over layers and history", {"write_gate": ""}),
    _Chart("‖S‖ of an episode, all layers", {"state_norm": ""}),
    _Chart("norm of the gradient, before clipping", {"gradient_norm": ""}),
    _Chart("learning rate", {"learning_rate": ""}),
    _Chart(
        "perplexity of plain English ÷ the frozen model's",
        {
            "health_written": "written",
            "health_carried_read": "carried and read",
            "health_carried_written": "carried and written",
        },
        nothing="not measured",
    ),
)
# The charts by their index, row by row; the last one is as wide as two.
_PLACES = ((0, 1), (2, 3), (4, 5), (6, 6))


def draw(rows: Sequence[Row], name: str, path: Path) -> None:
    """Draw the metrics of a run to a file.

    Raises:
        OSError: The file cannot be written. An earlier file is still there.
    """
    save_figure(training_figure(rows, name), path)


@styled
def training_figure(rows: Sequence[Row], name: str) -> Figure:
    """Draw the metrics of a run.

    Args:
        rows: Numbers by name, with their `iteration`; None for a number that was not finite.
        name: The name of the run.
    """
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    last = max((row["iteration"] or 0 for row in rows), default=0)
    add_title(figure, f"{name}: training, {last:,} steps")
    mosaic: list[HashableList[int]] = [list(row) for row in _PLACES]
    placed = figure.subplot_mosaic(mosaic, sharex=True)
    for number, chart in enumerate(_CHARTS):
        _draw_chart(placed[number], chart, rows)
    for number in _PLACES[-2]:
        # matplotlib hides these labels, but the chart below has another width.
        placed[number].tick_params(labelbottom=True)
    lowest = placed[_PLACES[-1][0]]
    lowest.set_xlabel("steps")
    lowest.set_xlim(0, max(last, 1) * 1.02)
    lowest.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    return figure


def _draw_chart(axes: Axes, chart: _Chart, rows: Sequence[Row]) -> None:
    axes.set_title(chart.title)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    drawn = []
    for style, (name, label) in zip(LINES, chart.lines.items(), strict=False):
        found = [(row["iteration"], row[name]) for row in rows if name in row]
        if not found:
            continue
        steps, numbers = np.array(found, np.float64).T
        axes.plot(steps, numbers, label=label, **marked(style, len(steps)))
        drawn.append(numbers)
    if not drawn:
        axes.set_yticks([])
        axes.text(0.5, 0.5, chart.nothing, transform=axes.transAxes, ha="center", va="center", size=SMALL)
        return
    axes.set_ylim(chart.limits or limits(np.concatenate(drawn), _LEAST_ROOM * _largest(drawn)))
    if len(drawn) > 1:
        axes.legend()


def _largest(drawn: Sequence[np.ndarray]) -> float:
    """The largest absolute value, so that a number that never changes has a margin above and below it."""
    sizes = np.abs(np.concatenate(drawn))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0)) or 1.0
