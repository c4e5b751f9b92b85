"""The figures of an evaluation: the scores under each condition, and the scores as functions of labels."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_deltamem.evaluation.analysis import Curve, Result
from mlx_deltamem.evaluation.statistics import Estimate
from mlx_deltamem.show.style import BLUE, GREEN, GREY, VERMILLION, WIDTH, LineStyle, add_title, save_figure, styled

# Inches: the height of the figure of scores, of a row of curves, and of the room for names written upright.
_HEIGHT, _CURVE_HEIGHT, _UPRIGHT = 2.6, 2.4, 1.2
# Curves in a row.
_ACROSS = 2
# More of Okabe and Ito's colours.
_ORANGE, _SKY, _PURPLE, _BROWN = "#E69F00", "#56B4E9", "#CC79A7", "#8C564B"


# Lines are solid with the history in the text, dashed with the history in the memory, and dotted for controls.
_STYLES: dict[str, LineStyle] = {
    "base": {"color": "black", "linestyle": "-", "marker": "o"},
    "full": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "replay": {"color": _SKY, "linestyle": "-", "marker": "D"},
    "state": {"color": VERMILLION, "linestyle": "--", "marker": "^"},
    "none": {"color": GREY, "linestyle": ":", "marker": "v"},
    "zeroed": {"color": GREEN, "linestyle": ":", "marker": "x"},
    "shuffled": {"color": _PURPLE, "linestyle": ":", "marker": "P"},
    "chat": {"color": _ORANGE, "linestyle": "-.", "marker": "*"},
}
# Chats that keep some of their text (`chat-256` and the like).
_CHAT_WITH_TEXT: LineStyle = {"color": _BROWN, "linestyle": "-.", "marker": "h"}
_HATCHES = {"zeroed": "//", "shuffled": "\\\\", "none": ".."}
# The share of a group's room that its bars fill.
_BARS = 0.8
# With more groups, their names are written upright.
_MOST_LEVEL = 6


def draw(result: Result, folder: Path) -> list[str]:
    """Draw the results of a task to files in a folder.

    Returns:
        The names of the files.

    Raises:
        OSError: A file cannot be written. An old file of that name is unchanged.
    """
    figures = {f"{result.task.name}.png": scores_figure(result)}
    if result.curves:
        figures[f"{result.task.name}-curves.png"] = curves_figure(result)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return list(figures)


@styled
def scores_figure(result: Result) -> Figure:
    """Draw the main score under each condition, for all questions, each category and each value of a label."""
    groups = [("all", result.whole), *((subset.name, subset) for subset in result.categories)]
    for label, subsets in result.breakdowns.items():
        groups += [(f"{label}\n{subset.name}", subset) for subset in subsets]
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    add_title(figure, f"{result.task.title}, with 95 % intervals")
    axes = figure.subplots()
    width = _BARS / len(result.conditions)
    for index, condition in enumerate(result.conditions):
        estimates = [subset.means[condition, result.metrics[0]] for _, subset in groups]
        places = [place + (index + 0.5) * width - _BARS / 2 for place in range(len(groups))]
        axes.bar(
            places,
            [each.value for each in estimates],
            width,
            yerr=_errors(estimates),
            label=condition,
            color=_style(condition)["color"],
            hatch=_HATCHES.get(condition),
            edgecolor="white",
            linewidth=0,
            error_kw={"elinewidth": 0.8, "ecolor": "0.3"},
        )
    if len(groups) > _MOST_LEVEL:
        axes.set_xticks(range(len(groups)), [name.replace("\n", " ") for name, _ in groups], rotation=90)
        figure.set_figheight(_HEIGHT + _UPRIGHT)
    else:
        axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    _percent(axes, result)
    figure.legend(loc="outside lower center", ncols=len(result.conditions))
    return figure


@styled
def curves_figure(result: Result) -> Figure:
    """Draw the main score as a function of each label that is a number."""
    down = math.ceil(len(result.curves) / _ACROSS)
    figure = Figure(figsize=(WIDTH, _CURVE_HEIGHT * down), layout="constrained")
    add_title(figure, f"{result.task.title}: scores by label, with 95 % intervals")
    grid = figure.subplots(down, min(_ACROSS, len(result.curves)), squeeze=False).flatten()
    for axes, curve in zip(grid, result.curves, strict=False):
        _curve(axes, curve)
        _percent(axes, result)
    for axes in grid[len(result.curves) :]:
        axes.set_axis_off()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(result.conditions))
    return figure


def _curve(axes: Axes, curve: Curve) -> None:
    for condition, estimates in curve.conditions.items():
        style = _style(condition)
        values = [each.value for each in estimates]
        axes.fill_between(
            curve.places,
            [each.low for each in estimates],
            [each.high for each in estimates],
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(curve.places, values, label=condition, **style)
    axes.set_xlabel(
        curve.label.replace("_", " in ", 1) if curve.label.startswith("distance_") else curve.label.replace("_", " ")
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _style(condition: str) -> LineStyle:
    return _STYLES.get(condition, _CHAT_WITH_TEXT)


def _percent(axes: Axes, result: Result) -> None:
    axes.set_ylabel(f"{result.metrics[0]}, %")
    axes.set_ylim(0, 100)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    below = [max(0.0, each.value - each.low) for each in estimates]
    return [below, [max(0.0, each.high - each.value) for each in estimates]]
