"""What a text did to the memory: the picture that shows how δ-mem works."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from mlx_deltamem.inspection.tokens_figure import label_tokens
from mlx_deltamem.inspection.trace import Trace
from mlx_deltamem.show.style import (
    BAND,
    BLUE,
    GREY,
    LARGEST_WIDTH,
    LINES,
    SEQUENTIAL,
    SMALL,
    WIDTH,
    add_title,
    limits,
    marked,
    styled,
)
from mlx_deltamem.show.tiles import StateTiles

# Inches: the heights of the charts of lines and of a layer in the heat map, what stands beside the tokens, and the room
# that a token's label needs.
_NORMS_HEIGHT, _GATE_HEIGHT, _ROW_HEIGHT, _BESIDE, _TOKEN_WIDTH = 1.2, 0.75, 0.075, 3.3, 0.125
# The charts beside them, and the titles, labels and gaps of a column of charts.
_SIDE_WIDTH, _BETWEEN, _TILES_BETWEEN = 1.3, 2.6, 0.7
# The least range of a scale of gates.
_LEAST_ROOM = 1e-3
# What the scale of the heat map and the range of a layer leave out at each end, lest a few outliers hide the others.
_OUTLIERS, _TAIL = 0.01, 0.05
_MOST_LAYER_TICKS = 10


@styled
def trace_figure(trace: Trace, title: str) -> Figure:
    """Draw where a text was written, how the memory grew, and what it does to the model.

    Args:
        trace: What the text did.
        title: Of the figure.
    """
    width = min(max(WIDTH, _BESIDE + _TOKEN_WIDTH * len(trace.tokens)), LARGEST_WIDTH)
    tiles = StateTiles(trace.states, width)
    charts = [_NORMS_HEIGHT, _GATE_HEIGHT, _GATE_HEIGHT, max(1.2, _ROW_HEIGHT * len(trace.layers))]
    heights = [sum(charts) + _BETWEEN, tiles.height + _TILES_BETWEEN]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    add_title(figure, title)
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    widths = [width - _BESIDE + _SIDE_WIDTH, _SIDE_WIDTH]
    grid = above.subplots(4, 2, sharex="col", height_ratios=charts, width_ratios=widths)
    _norms(grid[0, 0], trace)
    _gate(grid[1, 0], trace.keep, "keep")
    _gate(grid[2, 0], trace.write, "write β")
    for axes, legend in grid[:2]:
        legend.legend(*axes.get_legend_handles_labels(), loc="center left", borderaxespad=0)
    for axes in grid[:3, 1]:
        axes.axis("off")
    grid[1, 0].set_title("2  Each token lets a part of it fade")
    grid[2, 0].set_title("3  and writes itself")
    _write_map(grid[3, 0], trace)
    _corrections(grid[3, 1], trace)
    memory = below.subplots()
    memory.set_title("6  The memory after the text")
    tiles.draw(memory)
    # The labels' room is known when everything else has its place.
    figure.draw_without_rendering()
    grid[3, 0].set_xlabel(label_tokens(grid[3, 0], trace.texts, trace.tokens, trace.write.mean(axis=0)))
    return figure


def _norms(axes: Axes, trace: Trace) -> None:
    """How the states grow: all layers as a band, and three of them."""
    axes.set_title("1  The memory grows and fades", pad=4)
    axes.set_ylabel("norm of the\nstate ‖S‖")
    axes.secondary_xaxis("top", functions=(_one_later, _one_earlier)).set_xlabel("place in the text (tokens)")
    places = np.array(trace.places) - 1
    axes.fill_between(places, trace.norms.min(axis=0), trace.norms.max(axis=0), label="all layers", **BAND)
    order = np.argsort(trace.norms[:, -1], kind="stable")
    # Fewer than three layers are each named once.
    chosen = {order[0]: "smallest", order[len(order) // 2]: "median", order[-1]: "largest"}
    for style, (row, name) in zip(LINES, reversed(chosen.items()), strict=False):
        label = f"layer {trace.layers[row]} ({name})"
        axes.plot(places, trace.norms[row], label=label, **marked(style, len(places)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _gate(axes: Axes, gates: np.ndarray, name: str) -> None:
    """A gate of each token: all layers as a band, and their mean."""
    axes.set_ylabel(f"{name}\n(share)")
    places = np.arange(gates.shape[1])
    low, high = gates.min(axis=0), gates.max(axis=0)
    axes.fill_between(places, low, high, label="all layers", **BAND)
    axes.plot(places, gates.mean(axis=0), label="their mean", **marked(LINES[0], len(places)))
    axes.set_ylim(limits(gates, _LEAST_ROOM))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _one_later(place: np.ndarray) -> np.ndarray:
    return place + 1


def _one_earlier(place: np.ndarray) -> np.ndarray:
    return place - 1


def _write_map(axes: Axes, trace: Trace) -> None:
    """β of each token in each layer."""
    axes.set_title("4  Where it is written: the write gate β")
    finite = trace.write[np.isfinite(trace.write)]
    low, high = np.quantile(finite, [_OUTLIERS, 1 - _OUTLIERS]) if finite.size else (0.0, 1.0)
    image = axes.imshow(
        trace.write,
        aspect="auto",
        origin="lower",
        cmap=SEQUENTIAL,
        vmin=low,
        vmax=max(high, low + _LEAST_ROOM),
        interpolation="antialiased",
    )
    axes.set_ylabel("layer")
    _layer_ticks(axes, trace.layers)
    axes.figure.colorbar(image, ax=axes, label="β (mean of the rows)", aspect=15, pad=0.01)


def _corrections(axes: Axes, trace: Trace) -> None:
    """How strongly the memory steers each layer."""
    axes.set_title("5  How it steers")
    axes.set_xlabel("‖Δo‖ / ‖o‖\n(dot: mean; line:\n5 to 95% of tokens)")
    _layer_ticks(axes, trace.layers)
    axes.set_ylim(-0.5, len(trace.layers) - 0.5)
    if trace.correction is None:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "o is not\ncorrected", transform=axes.transAxes, ha="center", va="center", size=SMALL)
        return
    rows = np.arange(len(trace.layers))
    low, high = np.quantile(trace.correction, [_TAIL, 1 - _TAIL], axis=1)
    axes.hlines(rows, low, high, color=GREY)
    axes.plot(trace.correction.mean(axis=1), rows, "o", color=BLUE)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(3))


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    step = -(-len(layers) // _MOST_LAYER_TICKS)
    axes.yaxis.set_major_locator(FixedLocator(range(0, len(layers), step)))
    axes.set_yticklabels([str(layer) for layer in layers[::step]])
