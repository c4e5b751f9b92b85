"""The distances between two sets of arrays, layer by layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_deltamem.core.adapter import layer_list
from mlx_deltamem.inspection.states import norm
from mlx_deltamem.show.plot import LayerCharts


@dataclass(frozen=True)
class Distance:
    """The distance between two arrays of one shape.

    Attributes:
        relative: The norm of their difference, relative to the larger of their norms: 0 = equal, 2 = opposite.
        cosine: The cosine of the angle between them; NaN (null in a document) if one of them is zero.
    """

    relative: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two sets of arrays, a and b, by layer.

    Attributes:
        distances: The distances of the layers that both sets have in one shape.
        only_in_a, only_in_b: The layers that only one set has.
        misfits: By layer, why its arrays cannot be compared, in words.
    """

    distances: dict[int, Distance]
    only_in_a: list[int]
    only_in_b: list[int]
    misfits: dict[int, str]

    @property
    def is_identical(self) -> bool:
        """Whether both sets have the same layers and the same numbers."""
        comparable = not (self.only_in_a or self.only_in_b or self.misfits)
        return comparable and all(distance.relative == 0 for distance in self.distances.values())

    @property
    def relative(self) -> dict[int, float]:
        """The relative distances by layer."""
        return {layer: distance.relative for layer, distance in self.distances.items()}

    @property
    def problems(self) -> list[str]:
        """Why some layers were not compared, in words."""
        by_misfit: dict[str, list[int]] = {}
        for layer, misfit in self.misfits.items():
            by_misfit.setdefault(misfit, []).append(layer)
        problems = [f"{misfit} ({layer_list(layers)})" for misfit, layers in by_misfit.items()]
        for side, layers in (("A", self.only_in_a), ("B", self.only_in_b)):
            problems += [f"only in {side} ({layer_list(layers)})"] if layers else []
        return problems


def compare(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray]) -> Comparison:
    """Compare two sets of arrays by layer index."""
    distances, misfits = {}, {}
    for layer in sorted(a.keys() & b.keys()):
        if a[layer].shape == b[layer].shape:
            distances[layer] = distance(a[layer], b[layer])
        else:
            misfits[layer] = f"shape {list(a[layer].shape)} and {list(b[layer].shape)}"
    return Comparison(distances, sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys()), misfits)


def distance(a: np.ndarray, b: np.ndarray) -> Distance:
    """The distance between two arrays of one shape, computed in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = norm(a), norm(b)
    if np.array_equal(a, b, equal_nan=True):
        return Distance(0.0, 1.0 if 0 < norms[0] < math.inf else math.nan)
    # The numbers of a memory may have overflowed; both results are NaN then.
    with np.errstate(invalid="ignore"):
        cosine = float(np.vdot(a, b) / (norms[0] * norms[1])) if all(norms) else math.nan
        relative = norm(a - b) / max(norms)
    # Rounding may give a number slightly beyond 1.
    return Distance(relative, cosine if math.isnan(cosine) else min(1.0, max(-1.0, cosine)))


def fields_that_differ(a: Mapping[str, object], b: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """The fields that differ: the values of a and b by name. Both have the same fields."""
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def distance_charts(a: str, b: str, identical: bool, charts: Mapping[str, Mapping[int, float]]) -> LayerCharts:
    """The content of the figure of a diff.

    Args:
        a, b: The paths of the adapters or chats, for the title.
        identical: Whether they are identical, for the title.
        charts: The relative distances, by the title of their chart and by layer.
    """
    title = f"A: {Path(a).name}, B: {Path(b).name}" + (", identical" if identical else "")
    return LayerCharts(title, "‖A − B‖ / larger norm", charts, "No two of a name have the same shape.", one_scale=True)
