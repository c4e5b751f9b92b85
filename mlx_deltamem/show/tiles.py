"""The states of all layers as heat maps on one scale."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from mlx_deltamem.show.style import DIVERGING, SMALL

# The gaps between tiles and between state heads, relative to the side of one head.
_GAP, _HEAD_GAP = 0.25, 0.06
# Inches: the largest and the smallest side of a head, the height of a tile's name, the width of the colour bar, and the
# width that the colour bar and the labels take together.
_LARGEST, _SMALLEST, _NAME, _BAR, _BESIDE = 1.1, 0.42, 0.17, 0.1, 1.3


class StateTiles:
    """The places of the tiles: one tile for each layer, with its state heads side by side.

    Args:
        states: `[H, r, r]` by layer; row = value, column = key.
        width: The width of the figure in inches.

    Attributes:
        height: The height of all tiles in inches.
    """

    def __init__(self, states: Mapping[int, np.ndarray], width: float):
        self._states = states
        heads = len(next(iter(states.values())))
        self._tile = heads + (heads - 1) * _HEAD_GAP
        room = width - _BESIDE
        most = max(1, int(room / _SMALLEST / (self._tile + _GAP)))
        down = math.ceil(len(states) / most)
        # The rows of tiles are as equal in length as they can be.
        self._across = math.ceil(len(states) / down)
        width = self._across * (self._tile + _GAP) - _GAP
        # Inches.
        self._side = min(_LARGEST, room / width)
        self._name = _NAME / self._side
        self._size = (width, down * (1 + self._name))
        self.height = self._side * self._size[1]

    def draw(self, axes: Axes) -> None:
        """Draw the tiles, their names and the colour bar."""
        largest = max((_largest(state) for state in self._states.values()), default=0.0)
        scale = Normalize(-largest or -1.0, largest or 1.0)
        colours = colormaps[DIVERGING].with_extremes(bad="0.5")
        for index, (layer, state) in enumerate(self._states.items()):
            x = index % self._across * (self._tile + _GAP)
            y = index // self._across * (1 + self._name) + self._name
            axes.text(x, y - 0.2 * self._name, f"layer {layer}", size=SMALL, va="bottom")
            for head, numbers in enumerate(state):
                left = x + head * (1 + _HEAD_GAP)
                axes.imshow(
                    np.ma.masked_invalid(numbers),
                    extent=(left, left + 1, y + 1, y),
                    cmap=colours,
                    norm=scale,
                    interpolation="nearest",
                )
                axes.add_patch(Rectangle((left, y), 1, 1, fill=False, linewidth=0.5, edgecolor="0.4"))
        axes.set(xlim=(-0.02, self._size[0] + 0.02), ylim=(self._size[1] + 0.02, 0), xticks=[], yticks=[])
        axes.set_aspect("equal", anchor="NW")
        axes.spines[:].set_visible(False)
        axes.set_xlabel("keys (columns)")
        axes.set_ylabel("values (rows)")
        unknown = sum(int((~np.isfinite(state)).sum()) for state in self._states.values())
        note = f"\n{unknown:,} not finite (grey)" if unknown else ("" if largest else "\nthe memory is empty")
        bar_width = _BAR / self._side / self._size[0]
        bar = axes.inset_axes((1 + bar_width, 0, bar_width, 1))
        axes.figure.colorbar(ScalarMappable(scale, colours), cax=bar, label=f"numbers of the state{note}")


def _largest(state: np.ndarray) -> float:
    return float(np.abs(np.where(np.isfinite(state), state, 0.0)).max())
