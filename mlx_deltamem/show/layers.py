"""Bar charts of several kinds of numbers, each with a bar for each layer."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlx_deltamem.show.plot import LayerCharts
from mlx_deltamem.show.style import BLUE, SMALL, WIDTH, add_title, styled

_ACROSS = 3
_HEIGHT = 1.35


@styled
def layer_figure(content: LayerCharts) -> Figure:
    """Draw the charts, at most three in a row."""
    charts = content.charts
    across = min(_ACROSS, len(charts)) or 1
    down = math.ceil(len(charts) / across) or 1
    figure = Figure(figsize=(WIDTH, 0.6 + _HEIGHT * down), layout="constrained")
    add_title(figure, content.title)
    if not charts:
        figure.text(0.5, 0.4, content.nothing, ha="center")
        return figure
    layers = sorted({layer for numbers in charts.values() for layer in numbers})
    highest = max(map(_highest, charts.values()))
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for index, (name, numbers) in enumerate(charts.items()):
        axes = grid[index]
        axes.set_title(name)
        _bars(axes, numbers, highest if content.one_scale else _highest(numbers))
        axes.set_xlim(layers[0] - 0.7, layers[-1] + 0.7)
        if index % across == 0:
            axes.set_ylabel(content.unit)
        if index + across >= len(charts):
            axes.set_xlabel("layer")
    for axes in grid[len(charts) :]:
        axes.remove()
    return figure


def _bars(axes: Axes, numbers: Mapping[int, float], highest: float) -> None:
    finite = {layer: number for layer, number in numbers.items() if math.isfinite(number)}
    axes.bar(list(finite), list(finite.values()), color=BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    # matplotlib would give a chart of zeros a scale of tiny numbers.
    axes.set_ylim(0, highest * 1.05 or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if not highest:
        axes.set_yticks([0])
    notes = ["zero in every layer"] if not any(numbers.values()) else []
    notes += [f"{len(numbers) - len(finite)} not finite"] if len(finite) < len(numbers) else []
    axes.text(0.5, 0.5, "\n".join(notes), transform=axes.transAxes, ha="center", va="center", size=SMALL)


def _highest(numbers: Mapping[int, float]) -> float:
    return max((number for number in numbers.values() if math.isfinite(number)), default=0.0)
