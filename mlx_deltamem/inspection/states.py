"""What is to be known of a memory: norms and effective ranks of its states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class StateReport:
    """The state of one layer.

    Attributes:
        layer: Its index.
        norm: Its Frobenius norm, over all state heads.
        largest: Its largest number by amount.
        effective_rank: By state head, as `effective_rank` says.
    """

    layer: int
    norm: float
    largest: float
    effective_rank: list[float]


def state_arrays(states: Mapping[int, mx.array]) -> dict[int, np.ndarray]:
    """The states `[1, H, r, r]` of one sequence as numpy arrays `[H, r, r]` float32, by layer index."""
    return {layer: np.array(state[0]) for layer, state in states.items()}


def state_reports(states: Mapping[int, np.ndarray]) -> list[StateReport]:
    """What is to be known of states `[H, r, r]`, by layer index."""
    return [
        StateReport(layer, norm(state), float(np.abs(state).max()), [effective_rank(head) for head in state])
        for layer, state in states.items()
    ]


def norm(array: np.ndarray) -> float:
    """The Frobenius norm, taken in float64."""
    return float(np.linalg.norm(array.astype(np.float64).reshape(-1)))


def effective_rank(matrix: np.ndarray) -> float:
    """How many directions a matrix really uses: exp of the entropy of its normalised singular values.

    (O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.) It is n for n
    equal singular values, 1 for a matrix of rank one, and lies between these and the rank otherwise; here also 0 for a
    matrix of zeros, and NaN for one that holds numbers that are not finite.
    """
    if not np.isfinite(matrix).all():
        return math.nan
    singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
