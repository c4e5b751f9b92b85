"""The figures of an evaluation: the scores under each condition, and the scores as functions of labels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import HashableList

from mlx_deltamem.evaluation.analysis import Curve, Result
from mlx_deltamem.evaluation.budget import budgets
from mlx_deltamem.evaluation.bytes_figure import bytes_figure
from mlx_deltamem.evaluation.condition_styles import style_of
from mlx_deltamem.evaluation.effects import Costs
from mlx_deltamem.evaluation.statistics import Estimate
from mlx_deltamem.show.style import WIDTH, add_title, save_figure, styled

# Inches: the height of the figure of scores, of a row of curves, and of the room for names written upright.
_HEIGHT, _CURVE_HEIGHT, _UPRIGHT = 2.6, 2.4, 1.2
# Curves in a row.
_ACROSS = 2
_HATCHES = {"zeroed": "//", "shuffled": "\\\\", "none": ".."}
# The share of a group's room that its bars fill.
_BARS = 0.8
# With more conditions than in one row, a legend has rows of so many columns.
_MOST_IN_A_ROW, _MOST_COLUMNS = 9, 6
# With more groups, their names are written upright.
_MOST_LEVEL = 6


def draw(result: Result, costs: Mapping[str, Costs], folder: Path) -> list[str]:
    """Draw the results of a task to files in a folder.

    Args:
        result: The results.
        costs: The costs, by condition.
        folder: The folder.

    Returns:
        The names of the files.

    Raises:
        OSError: A file cannot be written. An old file of that name is unchanged.
    """
    figures = {f"{result.task.name}.png": scores_figure(result)}
    if result.curves:
        figures[f"{result.task.name}-curves.png"] = curves_figure(result)
    if budget := budgets(result, costs):
        figures[f"{result.task.name}-bytes.png"] = bytes_figure(result, budget)
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
            color=style_of(condition)["color"],
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
    figure.legend(loc="outside lower center", ncols=_columns(result))
    return figure


@styled
def curves_figure(result: Result) -> Figure:
    """Draw the main score as a function of each label that is a number."""
    count = len(result.curves)
    down = math.ceil(count / _ACROSS)
    figure = Figure(figsize=(WIDTH, _CURVE_HEIGHT * down), layout="constrained")
    add_title(figure, f"{result.task.title}: scores by label, with 95 % intervals")
    # If the last row has one chart only, it is as wide as two.
    places = [*range(count), *[count - 1] * (count % _ACROSS)]
    rows: list[HashableList[int]] = [places[at : at + _ACROSS] for at in range(0, len(places), _ACROSS)]
    placed = figure.subplot_mosaic(rows)
    for number, curve in enumerate(result.curves):
        _curve(placed[number], curve)
        _percent(placed[number], result)
    figure.legend(*placed[0].get_legend_handles_labels(), loc="outside lower center", ncols=_columns(result))
    return figure


def _curve(axes: Axes, curve: Curve) -> None:
    for condition, estimates in curve.conditions.items():
        style = style_of(condition)
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


def _columns(result: Result) -> int:
    """The columns of a legend with all conditions."""
    return min(len(result.conditions), _MOST_COLUMNS if len(result.conditions) > _MOST_IN_A_ROW else _MOST_IN_A_ROW)


def _percent(axes: Axes, result: Result) -> None:
    axes.set_ylabel(f"{result.metrics[0]}, %")
    axes.set_ylim(0, 100)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    below = [max(0.0, each.value - each.low) for each in estimates]
    return [below, [max(0.0, each.high - each.value) for each in estimates]]
