"""A memory as text on a terminal: a small heat map for each layer."""

import math
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.text import Text

from mlx_deltamem.inspection.states import norm, squares, state_arrays
from mlx_deltamem.sessions.turns.drift import Drift, half_life

# Each side of a heat map has at most so many cells. In a larger state each cell shows the largest number of a block.
_MOST_CELLS = 16
# From negative (blue) over zero (grey) to positive (orange); colour-blind readers can tell these apart.
_NEGATIVE, _ZERO, _POSITIVE = (60, 140, 240), (64, 64, 64), (250, 145, 35)
# The signs for -1 to 1 on a terminal without colours, and on one that has ASCII only.
_SIGNS, _ASCII_SIGNS = "#=-. ░▒▓█", "#=-. +*%@"
# The width of the notes beside a heat map, with the gap before them.
_NOTES_WIDTH = 15


def memory_view(states: Mapping[int, mx.array], drift: Drift | None, console: Console) -> RenderableType:
    """Draw the states, and the effect of the last turn on them.

    Args:
        states: `[1, H, r, r]` float32 by layer index, with a key shift `[1, H, r + 1, r]`. The last row of these is not
            drawn.
        drift: The drift of the last turn; None leaves it out.
        console: The console that will print the result. Without colours, signs stand for the numbers.

    Returns:
        A renderable: the meaning of the colours, a tile for each layer, and a sentence about the last turn. In a tile
        the rows of the state (values) go downwards, and state heads are side by side. The scale of a tile is the
        largest absolute value in its layer.
    """
    is_ascii = console.options.ascii_only
    coloured = console.color_system in ("256", "truecolor") and not console.no_color and not is_ascii
    signs = None if coloured else _ASCII_SIGNS if is_ascii else _SIGNS
    arrays = squares(state_arrays(states))
    tiles = [_tile(layer, state, drift, signs, console.width) for layer, state in arrays.items()]
    parts: list[RenderableType] = [_legend(signs), Text(), Columns(tiles, padding=(0, 2))]
    if not any(state.any() for state in arrays.values()):
        parts.append(Text("the memory is empty"))
    if drift is not None and drift.kept:
        parts.append(Text(_sentence(drift)))
    parts.append(Text(_meaning(drift is not None), style="dim"))
    return Group(*parts)


def _legend(signs: str | None) -> Text:
    colours = Text().join(Text("█", style=_colour(step / 8)) for step in range(-8, 9))
    bar = colours if signs is None else Text(signs)
    return Text("-scale ").append_text(bar).append(" +scale; each layer has its own")


def _meaning(has_drift: bool) -> str:
    """The meaning of the numbers beside the tiles."""
    of_turn = (
        "; kept: the share of the memory that a token of the last message leaves in place; moved: how far the last "
        "turn moved the memory, relative to its size"
    )
    return (
        "scale: the largest number of the layer, drawn strongest; norm: the size of the layer's memory, 0 when empty"
        f"{of_turn if has_drift else ''}"
    )


def _sentence(drift: Drift) -> str:
    kept = sum(drift.kept.values()) / len(drift.kept)
    changed = sum(drift.changed.values()) / len(drift.changed)
    return (
        f"last turn: each token kept {kept:.0%} of the memory ({_half_life(kept)}); "
        f"in all it moved by {changed:.0%} of its norm"
    )


def _tile(layer: int, state: np.ndarray, drift: Drift | None, signs: str | None, width: int) -> Text:
    """The heat map of one layer, with its numbers to the right of it; `state` is `[H, r, r]`.

    `signs` stand for -1 to 1; None: colours do.
    """
    # A number that is not finite has no colour. The norm shows that there is one.
    heads = [_shrunk(np.nan_to_num(head, nan=0.0, posinf=0.0, neginf=0.0)) for head in state]
    largest = max(float(np.abs(head).max()) for head in heads)
    picture = _picture(heads, largest or 1.0, signs, width - _NOTES_WIDTH)
    notes = [f"scale {largest:7.3g}", f"norm  {norm(state):7.3g}"]
    if drift is not None:
        notes += [f"kept  {drift.kept[layer]:7.0%}", f"moved {drift.changed[layer]:7.0%}"]
    tile = Text(f"layer {layer}\n", no_wrap=True)
    for row in range(max(len(picture), len(notes))):
        line = picture[row] if row < len(picture) else Text(" " * picture[0].cell_len)
        tile.append_text(line).append(f"  {notes[row] if row < len(notes) else ''}\n", style="dim")
    return tile


def _picture(heads: list[np.ndarray], largest: float, signs: str | None, width: int) -> list[Text]:
    """The lines of a heat map, with as many heads side by side as the width allows."""
    across = max(1, min(len(heads), (width + 1) // (len(heads[0]) + 1)))
    lines: list[Text] = []
    for first in range(0, len(heads), across):
        drawn = [_head(head / largest, signs) for head in heads[first : first + across]]
        lines += [Text()] if lines else []
        lines += [Text(" ").join(parts) for parts in zip(*drawn, strict=True)]
    full = max(line.cell_len for line in lines)
    for line in lines:
        line.pad_right(full - line.cell_len)
    return lines


def _head(head: np.ndarray, signs: str | None) -> list[Text]:
    """The lines of one head; its numbers are between -1 and 1."""
    if signs is not None:
        middle = len(signs) // 2
        return [Text("".join(signs[middle + round(float(value) * middle)] for value in row)) for row in head]
    # A character is twice as high as wide. So it shows two rows: the upper one in its colour, the lower one behind it.
    rows = head if len(head) % 2 == 0 else np.pad(head, ((0, 1), (0, 0)))
    return [
        Text().join(Text("▀", style=f"{_colour(u)} on {_colour(v)}") for u, v in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]


def _colour(value: float) -> str:
    end = _POSITIVE if value > 0 else _NEGATIVE
    mixed = (round(zero + abs(float(value)) * (full - zero)) for zero, full in zip(_ZERO, end, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def _shrunk(head: np.ndarray) -> np.ndarray:
    """A head with at most `_MOST_CELLS` cells a side: each cell is the number with the largest size in its block."""
    block = math.ceil(len(head) / _MOST_CELLS)
    padded = np.pad(head, (0, -len(head) % block))
    side = len(padded) // block
    blocks = padded.reshape(side, block, side, block).swapaxes(1, 2).reshape(side, side, -1)
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)[..., 0]


def _half_life(kept: float) -> str:
    tokens = half_life(kept)
    if math.isnan(tokens):
        return "what is left of it is not known"
    return "nothing was forgotten" if math.isinf(tokens) else f"half is left after {tokens:.3g} tokens"
