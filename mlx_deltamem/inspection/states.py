"""The states of a memory: their numbers, norms and effective ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.key_shift import square


@dataclass(frozen=True)
class StateReport:
    """The facts about the state of one layer, without the row that a key shift adds.

    Attributes:
        layer: The index of the layer.
        norm: The Frobenius norm over all state heads.
        largest: The largest absolute value.
        effective_rank: The effective rank of each state head, as in `effective_rank`.
    """

    layer: int
    norm: float
    largest: float
    effective_rank: list[float]


def state_arrays(states: Mapping[int, mx.array]) -> dict[int, np.ndarray]:
    """The states of one sequence as numpy arrays.

    Args:
        states: `[1, *state_shape]` float32 by layer index, with `state_shape` as in `DeltaMemConfig`.

    Returns:
        `state_shape` float32 by layer index.
    """
    return {layer: np.array(state[0]) for layer, state in states.items()}


def squares(states: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The matrices `[H, r, r]` of all layers, without the rows that a key shift adds."""
    return {layer: square(state) for layer, state in states.items()}


def shape_held(states: Mapping[int, np.ndarray]) -> list[int]:
    """The shape of one layer's state; empty if there are no states. With a key shift it is `[H, r + 1, r]`."""
    return list(next(iter(states.values())).shape) if states else []


def bytes_held(states: Mapping[int, np.ndarray]) -> int:
    """The size of the states of all layers in bytes, with the rows that a key shift adds."""
    return sum(state.nbytes for state in states.values())


def memory_size(shape: Sequence[int], layers: str, size: int) -> str:
    """The size of a memory in words, as `1x8x8 float32 in 3 layers: 768 bytes`."""
    return f"{'x'.join(map(str, shape))} float32 in {layers}: {size:,} bytes"


def state_reports(states: Mapping[int, np.ndarray]) -> list[StateReport]:
    """Measure states, `[H, r, r]` or `[H, r + 1, r]` by layer index."""
    return [
        StateReport(layer, norm(state), float(np.abs(state).max()), [effective_rank(head) for head in state])
        for layer, state in squares(states).items()
    ]


def norm(array: np.ndarray) -> float:
    """The Frobenius norm of an array of any shape, computed in float64."""
    return float(np.linalg.norm(array.astype(np.float64).reshape(-1)))


def effective_rank(matrix: np.ndarray) -> float:
    """The number of directions that a matrix uses: exp of the entropy of its singular values, whose sum is scaled to 1.

    O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. It is n for n
    equal singular values, 1 for a matrix of rank one, and never larger than the rank.

    Returns:
        The effective rank; 0 for a matrix of zeros, NaN for a matrix with numbers that are not finite.
    """
    if not np.isfinite(matrix).all():
        return math.nan
    singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
