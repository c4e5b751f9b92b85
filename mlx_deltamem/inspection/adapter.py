"""What is to be known of an adapter."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import mlx.core as mx

from mlx_deltamem.core.adapter import Adapter, dtype_name
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import inactive_parameters
from mlx_deltamem.inspection.effects import idle_state_heads

_LAYER = re.compile(r"(?<=layers\.)\d+")


@dataclass(frozen=True)
class TensorReport:
    """The tensors of one name, shape and type, which the layers have one each of.

    Attributes:
        name: Their name in the file, `*` for the layer.
        shape, dtype: Of each.
        parameters, bytes: Of all together.
        in_use: False where they are there for the reference's sake and have no effect.
        norms: By layer, the Frobenius norm.
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
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class AdapterReport:
    """What is to be known of an adapter.

    Attributes:
        kind: "adapter".
        source, file: The folder or repo it was read from, and the name of the weights file.
        config: Its configuration, every field.
        not_default: The names of the fields that differ from the reference's defaults.
        layers: The layers that have a memory.
        parameters, parameters_in_use, bytes: Of all tensors; of those that have an effect; of all.
        state_shape, state_bytes: `[H, r, r]` of one layer, float32, and the memory of one sequence in all layers.
        tensors: The tensors, by name.
        idle_layers: The layers in which the memory can have no effect.
        idle_state_heads: By layer, the state heads that can have no effect.
        metadata: Where it came from, as in the file.
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


def adapter_report(adapter: Adapter) -> AdapterReport:
    """Measure an adapter."""
    config, defaults = adapter.config, DeltaMemConfig()
    tensors = _tensor_reports(adapter)
    by_layer = dict(sorted(adapter.weights_by_layer().items()))
    idle = {layer: idle_state_heads(config, each) for layer, each in by_layer.items()}
    return AdapterReport(
        kind="adapter",
        source=adapter.source,
        file=adapter.file,
        config=asdict(config),
        not_default=[f.name for f in fields(config) if getattr(config, f.name) != getattr(defaults, f.name)],
        layers=list(by_layer),
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


def tensors_by_name(adapter: Adapter) -> dict[str, dict[int, mx.array]]:
    """By name (`*` for the layer) and layer index, an adapter's tensors."""
    found: dict[str, dict[int, mx.array]] = defaultdict(dict)
    for key, tensor in adapter.weights.items():
        if match := _LAYER.search(key):
            found[_LAYER.sub("*", key)][int(match[0])] = tensor
    return {name: dict(sorted(layers.items())) for name, layers in sorted(found.items())}


def _tensor_reports(adapter: Adapter) -> list[TensorReport]:
    inactive = inactive_parameters(adapter.config)
    reports = []
    for name, layers in tensors_by_name(adapter).items():
        kinds: dict[tuple, dict[int, mx.array]] = defaultdict(dict)
        for layer, tensor in layers.items():
            kinds[tensor.shape, dtype_name(tensor.dtype)][layer] = tensor
        for (shape, dtype), alike in kinds.items():
            norms = tensor_norms(alike)
            reports.append(
                TensorReport(
                    name=name,
                    shape=list(shape),
                    dtype=dtype,
                    parameters=sum(tensor.size for tensor in alike.values()),
                    bytes=sum(tensor.nbytes for tensor in alike.values()),
                    in_use=name.rpartition(".")[2] not in inactive,
                    norms=norms,
                    zero_in=[layer for layer, tensor in alike.items() if not tensor.any().item()],
                )
            )
    return reports


def tensor_norms(tensors: Mapping[int, mx.array]) -> dict[int, float]:
    """The Frobenius norms of some tensors, evaluated together."""
    norms = mx.stack([mx.linalg.norm(tensor.astype(mx.float32)) for tensor in tensors.values()])
    return dict(zip(tensors, norms.tolist(), strict=True))
