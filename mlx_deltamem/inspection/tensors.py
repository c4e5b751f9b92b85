"""The tensors of an adapter, grouped over the layers."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from rich.console import RenderableType

from mlx_deltamem.core.adapter import Adapter, dtype_name, layer_list
from mlx_deltamem.core.shapes import inactive_parameters
from mlx_deltamem.inspection.states import norm
from mlx_deltamem.show.tables import columns, span

_LAYER = re.compile(r"(?<=layers\.)\d+")


@dataclass(frozen=True)
class TensorReport:
    """The tensors of one name, shape and type. Each layer has at most one of them.

    Attributes:
        name: Their name in the file, with `*` in place of the layer.
        shape, dtype: The shape and the type of each tensor.
        parameters, bytes: The number of parameters and the size of all tensors together.
        in_use: False for tensors that the reference requires and that have no effect.
        norms: The Frobenius norm by layer.
        zero_in: The layers in which all numbers are zero.
    """

    name: str
    shape: list[int]
    dtype: str
    parameters: int
    bytes: int
    in_use: bool
    norms: dict[int, float]
    zero_in: list[int]

    @property
    def short_name(self) -> str:
        """The name within the layer."""
        return short_name(self.name)


def short_name(name: str) -> str:
    """The name of a tensor within its layer, without the name of the layer and the attention module."""
    return name.rpartition(".")[2]


def tensors_by_name(adapter: Adapter) -> dict[str, dict[int, mx.array]]:
    """An adapter's tensors by name (with `*` in place of the layer) and layer index, both in order."""
    found: dict[str, dict[int, mx.array]] = defaultdict(dict)
    for key, tensor in adapter.weights.items():
        if match := _LAYER.search(key):
            found[_LAYER.sub("*", key)][int(match[0])] = tensor
    return {name: dict(sorted(layers.items())) for name, layers in sorted(found.items())}


def tensor_reports(adapter: Adapter) -> list[TensorReport]:
    """Measure an adapter's tensors: one report for each name, shape and type."""
    inactive = inactive_parameters(adapter.config)
    reports = []
    for name, layers in tensors_by_name(adapter).items():
        kinds: dict[tuple[tuple[int, ...], str], dict[int, mx.array]] = defaultdict(dict)
        for layer, tensor in layers.items():
            kinds[tensor.shape, dtype_name(tensor.dtype)][layer] = tensor
        for (shape, dtype), alike in kinds.items():
            reports.append(
                TensorReport(
                    name=name,
                    shape=list(shape),
                    dtype=dtype,
                    parameters=sum(tensor.size for tensor in alike.values()),
                    bytes=sum(tensor.nbytes for tensor in alike.values()),
                    in_use=short_name(name) not in inactive,
                    norms={layer: norm(numbers(tensor)) for layer, tensor in alike.items()},
                    zero_in=[layer for layer, tensor in alike.items() if not tensor.any().item()],
                )
            )
    return reports


def numbers(tensor: mx.array) -> np.ndarray:
    """A tensor of any type as a float32 array; numpy has no bfloat16."""
    return np.array(tensor.astype(mx.float32))


def tensor_table(tensors: list[TensorReport]) -> RenderableType:
    """The table of an adapter's tensors."""
    headings = ("name", "shape", "type", "layers", "bytes", "norm", "")
    table = columns("Tensors (names within the layer)", *headings, texts=(0, 1, 2, 6))
    for tensor in tensors:
        table.add_row(
            tensor.short_name,
            "x".join(map(str, tensor.shape)),
            tensor.dtype,
            str(len(tensor.norms)),
            f"{tensor.bytes:,}",
            span(tensor.norms.values()),
            _note(tensor),
        )
    return table


def norms_in_use(tensors: list[TensorReport]) -> Mapping[str, Mapping[int, float]]:
    """The norms of the tensors that have an effect, by their name within the layer and by layer."""
    found: dict[str, dict[int, float]] = {}
    for tensor in tensors:
        if tensor.in_use:
            # Layers may differ in shape or dtype, and then have several reports of one name.
            found.setdefault(tensor.short_name, {}).update(tensor.norms)
    return {name: dict(sorted(norms.items())) for name, norms in found.items()}


def _note(tensor: TensorReport) -> str:
    if not tensor.in_use:
        return "not in use"
    if not tensor.zero_in:
        return ""
    return "zero" if len(tensor.zero_in) == len(tensor.norms) else f"zero in {layer_list(tensor.zero_in)}"
