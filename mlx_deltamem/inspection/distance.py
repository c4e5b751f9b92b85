"""How far apart two sets of arrays are, layer by layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_deltamem.inspection.states import norm


@dataclass(frozen=True)
class Distance:
    """How far two arrays of one shape are apart.

    Attributes:
        relative: The norm of their difference, relative to the larger of their norms: 0 = equal, 2 = opposite.
        cosine: Of the angle between them; NaN (null in a document) where one of them is zero.
    """

    relative: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """Two sets of arrays, by layer.

    Attributes:
        distances: The distances of those that can be compared.
        only_in_a, only_in_b: The layers that only one of them has.
        misfits: By layer, how those that cannot be compared differ, in words.
    """

    distances: dict[int, Distance]
    only_in_a: list[int]
    only_in_b: list[int]
    misfits: dict[int, str]

    @property
    def is_identical(self) -> bool:
        """Whether both have the same layers and the same numbers."""
        comparable = not (self.only_in_a or self.only_in_b or self.misfits)
        return comparable and all(distance.relative == 0 for distance in self.distances.values())


Arrays = Mapping[int, mx.array] | Mapping[int, np.ndarray]


def compare(a: Arrays, b: Arrays) -> Comparison:
    """Compare two sets of arrays, by layer."""
    distances, misfits = {}, {}
    for layer in sorted(a.keys() & b.keys()):
        if a[layer].shape == b[layer].shape:
            distances[layer] = distance(_numbers(a[layer]), _numbers(b[layer]))
        else:
            misfits[layer] = f"shape {list(a[layer].shape)} and {list(b[layer].shape)}"
    return Comparison(distances, sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys()), misfits)


def distance(a: np.ndarray, b: np.ndarray) -> Distance:
    """The distance of two arrays of one shape."""
    norms = norm(a), norm(b)
    if np.array_equal(a, b, equal_nan=True):
        return Distance(0.0, 1.0 if 0 < norms[0] < math.inf else math.nan)
    # A memory may have overflowed: what is not finite gives NaN.
    with np.errstate(invalid="ignore"):
        cosine = float(np.vdot(a, b) / (norms[0] * norms[1])) if all(norms) else math.nan
        relative = norm(a - b) / max(norms)
    # Rounding may bring it past 1.
    return Distance(relative, cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine)))


def _numbers(array: mx.array | np.ndarray) -> np.ndarray:
    # numpy has no bfloat16.
    numbers = np.array(array.astype(mx.float32)) if isinstance(array, mx.array) else array
    return numbers.astype(np.float64)
