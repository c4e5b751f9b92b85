"""The figure of the field: the main score of each condition against the bytes that it keeps."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mlx_deltamem.evaluation.analysis import Result
from mlx_deltamem.evaluation.budget import TURNS, Budget
from mlx_deltamem.evaluation.condition_styles import style_of
from mlx_deltamem.show.style import WIDTH, add_title, styled

_HEIGHT, _LEGEND_ROW = 3.0, 0.18
# Columns of the legend.
_COLUMNS = 5
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
# The room at both ends of the axis, as a factor; and the factor between conditions that keep as many bytes.
_ROOM, _APART = 2.0, 1.12


@styled
def bytes_figure(result: Result, budget: Mapping[str, Budget]) -> Figure:
    """Draw the main score against the bytes that are kept: of the measured histories, and after many turns.

    A condition that keeps nothing is a line across the figure. Conditions that keep the same bytes stand side by side.

    Args:
        result: The results of a task.
        budget: What each condition keeps, by its name.
    """
    rows = -(-len(budget) // _COLUMNS)
    figure = Figure(figsize=(WIDTH, _HEIGHT + _LEGEND_ROW * rows), layout="constrained")
    add_title(figure, f"{result.task.title}: score and bytes kept for one history, with 95 % intervals")
    turns = next(iter(budget.values())).turns
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, result, {name: each.kept_bytes for name, each in budget.items()})
    _panel(right, result, {name: each.long_bytes for name, each in budget.items()})
    left.set_title(f"histories of {turns:.3g} turns, as measured")
    right.set_title(f"the same scores, bytes of {TURNS:,} turns")
    left.set_ylabel(f"{result.metrics[0]}, %")
    left.set_ylim(0, 100)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS)
    return figure


def _panel(axes: Axes, result: Result, kept: Mapping[str, float]) -> None:
    places = _apart({name: count for name, count in kept.items() if count > 0})
    for name in kept:
        estimate, style = result.whole.means[name, result.metrics[0]], style_of(name)
        if name not in places:
            axes.axhspan(estimate.low, estimate.high, color=style["color"], alpha=0.12, linewidth=0)
            axes.axhline(estimate.value, label=name, color=style["color"], linestyle=style["linestyle"])
            continue
        below, above = max(0.0, estimate.value - estimate.low), max(0.0, estimate.high - estimate.value)
        axes.errorbar(
            [places[name]],
            [estimate.value],
            yerr=[[below], [above]],
            label=name,
            color=style["color"],
            marker=style["marker"],
            markersize=5,
            linestyle="none",
            elinewidth=0.8,
            markerfacecolor=_face(name, style["color"]),
        )
    if places:
        axes.set_xscale("log")
        axes.set_xlim(min(places.values()) / _ROOM, max(places.values()) * _ROOM)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _size(count)))
    axes.set_xlabel("bytes kept")


def _face(name: str, color: str) -> str:
    """The colour inside a marker: beside a memory it is empty, and beside the memory of a control it is grey."""
    _, _, beside = name.partition("+")
    return {"": color, "state": "white"}.get(beside, "0.75")


def _apart(kept: Mapping[str, float]) -> dict[str, float]:
    """The places of conditions on the axis. Those that would stand on one another are moved a little apart."""
    places: dict[str, float] = {}
    for name, count in sorted(kept.items(), key=lambda item: item[1]):
        place = max(count, max(places.values(), default=0.0) * _APART)
        # Not further than by half: the figure has to show the number.
        places[name] = place if place <= 1.5 * count else count
    return places


def _size(count: float) -> str:
    """A number of bytes in words."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count:g} B"
