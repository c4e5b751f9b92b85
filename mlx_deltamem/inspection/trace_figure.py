"""The figure of a trace: where a text is written, how the memory grows, and how it steers the model."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike

from mlx_deltamem.inspection.trace import Trace, visible
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
    families_for,
    limits,
    marked,
    styled,
)
from mlx_deltamem.show.tiles import StateTiles

# Inches: the heights of the charts of lines and of a layer in the heat map, the width of everything beside the axis of
# tokens, and the width of a token's label.
_NORMS_HEIGHT, _GATE_HEIGHT, _ROW_HEIGHT, _BESIDE, _TOKEN_WIDTH = 1.2, 0.75, 0.075, 3.3, 0.125
# Inches: the width of the charts at the right, and the heights of titles, labels and gaps above and below the states.
_SIDE_WIDTH, _BETWEEN, _TILES_BETWEEN = 1.3, 2.6, 0.7
# The least range of an axis of gates.
_LEAST_ROOM = 1e-3
# The share of outliers at each end that the scale of the heat map and the range of a layer leave out.
_OUTLIERS, _TAIL = 0.01, 0.05
_MOST_LAYER_TICKS = 10
_POINTS_PER_INCH = 72
# The width of an upright label, relative to the size of its letters.
_SPACING = 1.2


@styled
def trace_figure(trace: Trace, title: str) -> Figure:
    """Draw a trace.

    From top to bottom, with the tokens as the axis: the norms of the states, the keep gates, the write gates, and a
    heat map of the write gates by layer with the corrections beside it. Below are the states after the text.

    Args:
        trace: The trace of a text.
        title: The title of the figure.
    """
    width = min(max(WIDTH, _BESIDE + _TOKEN_WIDTH * len(trace.tokens)), LARGEST_WIDTH)
    tiles = StateTiles(trace.states, width)
    charts = [_NORMS_HEIGHT, _GATE_HEIGHT, _GATE_HEIGHT, max(1.2, _ROW_HEIGHT * len(trace.layers))]
    heights = [sum(charts) + _BETWEEN, tiles.height + _TILES_BETWEEN]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    add_title(figure, title)
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
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
    # The width of the axis, and so the room for labels, is known only after the layout of everything else.
    figure.draw_without_rendering()
    grid[3, 0].set_xlabel(_label_tokens(grid[3, 0], trace.texts, trace.tokens, trace.write.mean(axis=0)))
    return figure


def _norms(axes: Axes, trace: Trace) -> None:
    """Draw the norms of the states by token: all layers as a band, and three layers as lines."""
    axes.set_title("1  The memory grows and fades", pad=4)
    axes.set_ylabel("norm of the\nstate ‖S‖")
    axes.secondary_xaxis("top", functions=(_one_later, _one_earlier)).set_xlabel("place in the text (tokens)")
    places = np.array(trace.places) - 1
    axes.fill_between(places, trace.norms.min(axis=0), trace.norms.max(axis=0), label="all layers", **BAND)
    order = np.argsort(trace.norms[:, -1], kind="stable")
    # With fewer than three layers, one layer has two of these names and keeps the last one.
    chosen = {order[0]: "smallest", order[len(order) // 2]: "median", order[-1]: "largest"}
    for style, (row, name) in zip(LINES, reversed(chosen.items()), strict=False):
        label = f"layer {trace.layers[row]} ({name})"
        axes.plot(places, trace.norms[row], label=label, **marked(style, len(places)))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _gate(axes: Axes, gates: np.ndarray, name: str) -> None:
    """Draw a gate by token: all layers as a band, and their mean as a line."""
    axes.set_ylabel(f"{name}\n(share)")
    places = np.arange(gates.shape[1])
    low, high = gates.min(axis=0), gates.max(axis=0)
    axes.fill_between(places, low, high, label="all layers", **BAND)
    axes.plot(places, gates.mean(axis=0), label="their mean", **marked(LINES[0], len(places)))
    axes.set_ylim(limits(gates, _LEAST_ROOM))
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _one_later(place: ArrayLike) -> ArrayLike:
    return np.add(place, 1)


def _one_earlier(place: ArrayLike) -> ArrayLike:
    return np.subtract(place, 1)


def _write_map(axes: Axes, trace: Trace) -> None:
    """Draw the write gate of each token in each layer as a heat map."""
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
    """Draw the sizes of the corrections of each layer."""
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


def _label_tokens(axes: Axes, texts: Sequence[str], tokens: Sequence[int], weights: np.ndarray) -> str:
    """Label the x axis, which counts tokens from 0, with the tokens.

    If there is no room for all labels, the tokens with the largest weights get one.

    Args:
        axes: The axes; the layout of the figure is done.
        texts, tokens: The texts and the ids of the T tokens.
        weights: `[T]`.

    Returns:
        The label of the axis, which says which tokens are labelled.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    per_token = axes.get_window_extent().width / figure.dpi * _POINTS_PER_INCH / max(1, np.ptp(axes.get_xlim()))
    places = _places(weights, least_gap=SMALL * _SPACING / per_token)
    labels = [visible(texts[place], tokens[place]) for place in places]
    families, missing = families_for(labels)
    labels = [f"#{tokens[p]}" if missing & set(label) else label for p, label in zip(places, labels, strict=True)]
    axes.set_xticks(places, labels, rotation=90, size=SMALL, family=families)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    some = f"; {len(places)} of {len(texts):,} are named, those written most" if len(places) < len(texts) else ""
    numbered = any(label == f"#{tokens[place]}" for place, label in zip(places, labels, strict=True))
    return f"tokens{some}" + ("; #: the id of one that cannot be drawn" if numbered else "")


def _places(weights: np.ndarray, least_gap: float) -> list[int]:
    """The places of the largest weights, in order, at least `least_gap` tokens apart."""
    free = np.ones(len(weights), bool)
    chosen = []
    near = int(np.ceil(least_gap)) - 1
    for place in np.argsort(-weights, kind="stable"):
        if free[place]:
            chosen.append(int(place))
            free[max(0, place - near) : place + near + 1] = False
    return sorted(chosen)
