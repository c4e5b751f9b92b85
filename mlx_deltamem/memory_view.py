"""The memory as text: a small heat map for each layer."""

import math
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.text import Text

from mlx_deltamem.drift import Drift, half_life

# Wider states are shown as means over square blocks.
_MOST_CELLS = 16
# From blue over grey to orange, which colour-blind readers tell apart; negative to positive.
_NEGATIVE, _ZERO, _POSITIVE = (33, 102, 172), (64, 64, 64), (245, 140, 40)
_SHADES = " ░▒▓█"


def memory_view(states: Mapping[int, mx.array], drift: Drift | None, console: Console) -> RenderableType:
    """Draw the states, with what the last turn did to them.

    Args:
        states: By layer index, `[1, H, r, r]`.
        drift: The last turn's; None leaves it out.
        console: Where it will be shown; without colours, shades tell the size of each number.

    Returns:
        Something for `console.print`: a tile for each layer, rows of the state (values) downwards, several state heads
        side by side. Each tile has a scale of its own, the largest number of its layer.
    """
    tiles = [_tile(layer, state, drift, console.color_system is not None) for layer, state in states.items()]
    parts: list[RenderableType] = [Columns(tiles, padding=(0, 2))]
    if drift is not None and drift.kept:
        kept = sum(drift.kept.values()) / len(drift.kept)
        changed = sum(drift.changed.values()) / len(drift.changed)
        parts.append(
            Text(f"last turn: kept {kept:.2f} of the state per token ({_half_life(kept)}), moved it by {changed:.2f}")
        )
    return Group(*parts)


def _tile(layer: int, state: mx.array, drift: Drift | None, coloured: bool) -> Text:
    heads = np.concatenate([_shrunk(head) for head in np.array(state[0])], axis=1)
    largest = np.abs(heads).max() or 1.0
    tile = Text(f"layer {layer}  norm {mx.linalg.norm(state).item():.2f}\n", no_wrap=True)
    for upper, lower in zip(heads[::2], _even(heads)[1::2], strict=True):
        for pair in zip(upper / largest, lower / largest, strict=True):
            tile.append_text(_cell(*pair, coloured))
        tile.append("\n")
    if drift is not None:
        tile.append(f"kept {drift.kept[layer]:.2f}  moved {drift.changed[layer]:.2f}\n", style="dim")
    return tile


def _cell(upper: float, lower: float, coloured: bool) -> Text:
    """Two numbers in -1 to 1, one above the other."""
    if coloured:
        return Text("▀", style=f"{_colour(upper)} on {_colour(lower)}")
    return Text(_SHADES[round(max(abs(upper), abs(lower)) * (len(_SHADES) - 1))])


def _colour(value: float) -> str:
    end = _POSITIVE if value > 0 else _NEGATIVE
    mixed = (round(zero + abs(value) * (full - zero)) for zero, full in zip(_ZERO, end, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def _shrunk(head: np.ndarray) -> np.ndarray:
    """A state of at most so many cells a side."""
    block = math.ceil(len(head) / _MOST_CELLS)
    padded = np.pad(head, (0, -len(head) % block))
    return padded.reshape(len(padded) // block, block, -1, block).mean(axis=(1, 3))


def _even(rows: np.ndarray) -> np.ndarray:
    return rows if len(rows) % 2 == 0 else np.pad(rows, ((0, 1), (0, 0)))


def _half_life(kept: float) -> str:
    tokens = half_life(kept)
    return "nothing was forgotten" if math.isinf(tokens) else f"half is left after {tokens:.1f} tokens"
