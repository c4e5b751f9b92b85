"""Writes of single tokens that wait for the end of the pass, so that all layers are written with the same operations.

For a single token, each operation of MLX costs more than its arithmetic. A layer's state is not read again before the
next token, so it need not be written where it is read. The states of all layers are then one array (`Together`), which
the next token takes as it is.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.core.reads import PackedWeights
from mlx_deltamem.recurrence.ops import OpsEngine


@dataclass(slots=True, eq=False)
class LateWrite:
    """A token of each row that a layer has not written yet.

    Attributes:
        engine: The engine of the pass.
        weights: The layer's weights.
        projected: `[B, 1, P]`, the projections of the token.
        state: `[B, *state_shape]` float32, the states before the token.
    """

    engine: OpsEngine
    weights: PackedWeights
    projected: mx.array
    state: mx.array


@dataclass(slots=True, eq=False)
class Together:
    """Arrays of several layers as one array each, for the next token.

    Attributes:
        states: The states of the layers, and all of them as one array.
        weights: The weights of the layers.
        gate_bias: Their gate biases as one array `[L, G or 2 G]`.
        key_shift: Their factors of the key shift as one array `[L, W]`; None without a key shift.
    """

    states: tuple[Sequence[mx.array], mx.array]
    weights: Sequence[PackedWeights]
    gate_bias: mx.array
    key_shift: mx.array | None

    def __deepcopy__(self, memo: object) -> "Together":
        # It never changes, so a copy of a prompt cache may have it too.
        return self


def late_states(
    writes: Mapping[int, LateWrite], written: mx.array | None, last: Together | None = None
) -> tuple[dict[int, mx.array], Together | None]:
    """The states after late writes.

    Args:
        writes: By layer index, the writes of one pass.
        written: `[B, 1]` bool, False for rows that keep their state bit for bit; None: all rows are written.
        last: The second result of the pass before; None if there is none.

    Returns:
        By layer index, the new states; and the arrays of the layers together, for the next pass.
    """
    # Layers may have activations of different dtypes.
    by_dtype: dict[mx.Dtype, list[int]] = {}
    for layer, write in writes.items():
        by_dtype.setdefault(write.projected.dtype, []).append(layer)
    states: dict[int, mx.array] = {}
    for layers in by_dtype.values():
        after, last = _written([writes[layer] for layer in layers], written, last)
        states.update(zip(layers, after, strict=True))
    return states, last if len(by_dtype) == 1 else None


def _written(
    writes: Sequence[LateWrite], written: mx.array | None, last: Together | None
) -> tuple[list[mx.array], Together]:
    """The states after writes of one dtype, and the arrays of their layers together."""
    before, weights = [write.state for write in writes], [write.weights for write in writes]
    if last is None or not _same(last.weights, weights):
        shifts = [each.key_shift for each in weights if each.key_shift is not None]
        gate_bias = mx.stack([each.gate_bias for each in weights])
        last = Together(((), gate_bias), weights, gate_bias, mx.stack(shifts) if shifts else None)
    parts, whole = last.states
    if not _same(parts, before):
        whole = mx.concatenate(before)
    projected = [write.projected for write in writes]
    whole, *after = writes[0].engine.write(projected, whole, last.gate_bias, last.key_shift, written)
    return after, Together((after, whole), last.weights, last.gate_bias, last.key_shift)


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))
