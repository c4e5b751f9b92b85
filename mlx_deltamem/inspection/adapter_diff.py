"""The differences between two adapters."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import mlx.core as mx
import numpy as np
from rich.console import RenderableType

from mlx_deltamem.core.adapter import Adapter, dtype_name, layer_list
from mlx_deltamem.inspection.distance import Comparison, compare, distance_charts, fields_that_differ
from mlx_deltamem.inspection.tensors import numbers, short_name, tensors_by_name
from mlx_deltamem.show.plot import LayerCharts
from mlx_deltamem.show.tables import by_layer, columns, difference_table, facts, span


@dataclass(frozen=True)
class AdapterDiff:
    """The differences between two adapters.

    Attributes:
        kind: "adapter diff".
        a, b: The folders or Hub repos that they were read from.
        identical: Whether their configurations are equal, and their tensors are equal in names, types and numbers.
        fields: By name, the values of a and b for the fields of the configurations that differ.
        tensors: The comparison of their tensors by name, with `*` in place of the layer.
        types: By name, the types of the tensors of a and b, where they differ.
    """

    kind: str
    a: str
    b: str
    identical: bool
    fields: dict[str, tuple[object, object]]
    tensors: dict[str, Comparison]
    types: dict[str, tuple[str, str]]

    def tables(self) -> list[RenderableType]:
        """The diff as tables."""
        names = {"A": self.a, "B": self.b}
        if self.identical:
            return [facts("Identical adapters", names | {"same": "config, and each tensor's name, type and numbers"})]
        relative = {
            short_name(name): comparison.relative
            for name, comparison in self.tensors.items()
            if any(comparison.relative.values())
        }
        return [
            facts("Two adapters", names),
            difference_table("Config", self.fields),
            _tensor_table(self),
            *by_layer("Relative distance by layer, of the tensors that differ", relative),
        ]

    def charts(self) -> LayerCharts:
        """The content of the figure: the distances of the tensors by layer."""
        charts = {short_name(name): each.relative for name, each in self.tensors.items() if each.distances}
        return distance_charts(self.a, self.b, self.identical, charts)


def adapter_diff(a: Adapter, b: Adapter) -> AdapterDiff:
    """Compare two adapters."""
    tensors_a, tensors_b = tensors_by_name(a), tensors_by_name(b)
    comparisons, types = {}, {}
    for name in sorted(tensors_a.keys() | tensors_b.keys()):
        of_a, of_b = tensors_a.get(name, {}), tensors_b.get(name, {})
        comparisons[name] = compare(_arrays(of_a), _arrays(of_b))
        if any(of_a[layer].dtype != of_b[layer].dtype for layer in of_a.keys() & of_b.keys()):
            types[name] = _types(of_a), _types(of_b)
    fields = fields_that_differ(asdict(a.config), asdict(b.config))
    identical = not fields and not types and all(each.is_identical for each in comparisons.values())
    return AdapterDiff("adapter diff", a.source, b.source, identical, fields, comparisons, types)


def _arrays(tensors: Mapping[int, mx.array]) -> dict[int, np.ndarray]:
    return {layer: numbers(tensor) for layer, tensor in tensors.items()}


def _types(tensors: Mapping[int, mx.array]) -> str:
    return ", ".join(sorted({dtype_name(tensor.dtype) for tensor in tensors.values()}))


def _tensor_table(diff: AdapterDiff) -> RenderableType:
    table = columns("Tensors", "name", "differ in", "relative distance", "cosine", "notes", texts=(0, 1, 4))
    for name, each in diff.tensors.items():
        differing = [layer for layer, relative in each.relative.items() if relative]
        table.add_row(
            short_name(name),
            layer_list(differing) if differing else "",
            span(each.distances[layer].relative for layer in differing) if differing else "",
            span(each.distances[layer].cosine for layer in differing) if differing else "",
            "; ".join(each.problems + ([f"type {' and '.join(diff.types[name])}"] if name in diff.types else [])),
        )
    return table
