"""The facts about an adapter: its configuration, its tensors, and the parts that have no effect."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import mlx.core as mx
import numpy as np
from rich.console import RenderableType

from mlx_deltamem.core.adapter import Adapter, layer_list
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.inspection.states import memory_size
from mlx_deltamem.inspection.tensors import TensorReport, norms_in_use, tensor_reports, tensor_table
from mlx_deltamem.show.plot import LayerCharts
from mlx_deltamem.show.tables import by_layer, columns, count, facts, setting


@dataclass(frozen=True)
class AdapterReport:
    """The facts about an adapter.

    Attributes:
        kind: "adapter".
        source, file: The folder or Hub repo that it was read from, and the name of the file with the weights.
        config: All fields of its configuration.
        not_default: The names of the fields that differ from the reference's defaults.
        layers: The indices of the layers that have a memory.
        parameters, parameters_in_use: The number of all parameters, and of those that have an effect.
        bytes: The size of all tensors.
        state_shape: The shape of one layer's state, float32: `[H, r, r]`, with a key shift `[H, r + 1, r]`.
        state_bytes: The size of the states of all layers for one sequence.
        tensors: The tensors in the order of their names.
        idle_layers: The layers in which the memory has no effect, whatever is written.
        idle_state_heads: By layer, the state heads that have no effect, whatever is written.
        metadata: The origin of the adapter, from the metadata of its file.
    """

    kind: str
    source: str
    file: str
    config: dict[str, object]
    not_default: list[str]
    layers: list[int]
    parameters: int
    parameters_in_use: int
    bytes: int
    state_shape: list[int]
    state_bytes: int
    tensors: list[TensorReport]
    idle_layers: list[int]
    idle_state_heads: dict[int, list[int]]
    metadata: dict[str, str]

    def tables(self) -> list[RenderableType]:
        """The report as tables."""
        unused = self.parameters - self.parameters_in_use
        rows = {
            "read from": f"{self.source} ({self.file})",
            "memory": f"{memory_size(self.state_shape, layer_list(self.layers), self.state_bytes)} a sequence",
            "parameters": f"{self.parameters:,}" + (f", of which {unused:,} are not in use" if unused else ""),
            "weights": count(self.bytes, "bytes"),
            "without effect": _without_effect(self),
        }
        return [
            facts("Adapter", rows),
            _config_table(self),
            tensor_table(self.tensors),
            *by_layer("Norms (Frobenius) of the tensors in use", norms_in_use(self.tensors)),
            facts("Provenance, from the metadata of the file", self.metadata or {"(none)": ""}),
        ]

    def charts(self) -> LayerCharts:
        """The content of the figure: the norms of the tensors in use."""
        title = f"{Path(self.source).name}: norms of its tensors by layer"
        return LayerCharts(title, "Frobenius norm", norms_in_use(self.tensors))


def adapter_report(adapter: Adapter) -> AdapterReport:
    """Measure an adapter."""
    config, defaults = adapter.config, DeltaMemConfig()
    tensors = tensor_reports(adapter)
    weights = dict(sorted(adapter.weights_by_layer().items()))
    idle = {layer: idle_state_heads(config, of_layer) for layer, of_layer in weights.items()}
    return AdapterReport(
        kind="adapter",
        source=adapter.source,
        file=adapter.file,
        config=asdict(config),
        not_default=[f.name for f in fields(config) if getattr(config, f.name) != getattr(defaults, f.name)],
        layers=list(weights),
        parameters=adapter.parameters,
        parameters_in_use=sum(tensor.parameters for tensor in tensors if tensor.in_use),
        bytes=sum(tensor.bytes for tensor in tensors),
        state_shape=list(config.state_shape),
        state_bytes=adapter.state_bytes,
        tensors=tensors,
        idle_layers=[layer for layer, heads in idle.items() if len(heads) == config.num_state_heads],
        idle_state_heads={layer: heads for layer, heads in idle.items() if heads},
        metadata=dict(adapter.metadata),
    )


def idle_state_heads(config: DeltaMemConfig, tensors: Mapping[str, mx.array]) -> list[int]:
    """The state heads of one layer that never correct anything, whatever is written.

    A state head is idle if its memory queries, keys or values are always zero. It is also idle if its reads are
    multiplied by zeros in all corrections that are in use.

    Args:
        config: The adapter's configuration.
        tensors: The layer's tensors by name.
    """
    queries, keys, values = (_used(tensors[f"memory_{name}_proj"], axis=0) for name in "qkv")
    if config.key_shift:
        # A key holds a part of the query of the token before. So it may differ from zero though its projection is zero.
        keys = keys | (queries & _used(tensors["key_shift"][:, None], axis=0))
    corrections = [_used(tensors[f"delta_{head}_proj"], axis=1) for head in _live_heads(config, tensors)]
    corrected = np.logical_or.reduce([np.zeros(config.width, bool), *corrections])
    by_head = [
        used.reshape(config.num_state_heads, config.rank).any(axis=1) for used in (queries, keys, values, corrected)
    ]
    return np.flatnonzero(~np.logical_and.reduce(by_head)).tolist()


def _live_heads(config: DeltaMemConfig, tensors: Mapping[str, mx.array]) -> list[str]:
    """The correction heads that have an effect on the backbone."""
    if config.alpha == 0:
        return []
    if config.delta_o_rmsnorm and not tensors["delta_o_rmsnorm_weight"].any().item():
        return [head for head in config.delta_heads if head != "o"]
    return list(config.delta_heads)


def _used(tensor: mx.array, axis: int) -> np.ndarray:
    """`[H * r]` bool: where a matrix has numbers other than zero along its `axis`, which has the width H * r."""
    return np.array((tensor != 0).any(axis=1 - axis))


def _without_effect(report: AdapterReport) -> str:
    """The idle layers and state heads in words."""
    found = []
    if report.idle_layers:
        found.append(f"{layer_list(report.idle_layers)} (nothing read reaches the model)")
    by_heads: dict[tuple[int, ...], list[int]] = {}
    for layer, heads in report.idle_state_heads.items():
        if layer not in report.idle_layers:
            by_heads.setdefault(tuple(heads), []).append(layer)
    found += [f"state heads {', '.join(map(str, heads))} in {layer_list(in_)}" for heads, in_ in by_heads.items()]
    return "; ".join(found) or "nothing: every layer can steer the model"


def _config_table(report: AdapterReport) -> RenderableType:
    defaults = DeltaMemConfig()
    table = columns("Config (* differs from the reference's default)", "field", "value", "default", texts=(0, 1, 2))
    for name, value in report.config.items():
        differs = name in report.not_default
        default = setting(getattr(defaults, name)) if differs else ""
        table.add_row(f"{'*' if differs else ' '} {name}", setting(value), default, style="bold" if differs else None)
    return table
