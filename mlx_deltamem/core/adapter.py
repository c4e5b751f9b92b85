"""Adapters in memory: their configuration and their tensors, under the names of the reference."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, inactive_parameters, parameter_shapes

# The files of an adapter's folder, beside its config.
WEIGHTS_FILE = "delta_mem_adapter.safetensors"
CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
# And of the run that trained it.
SETTINGS_FILE = "train_config.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

_KEY = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<path>.+)\.(?P<name>[^.]+)")


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        config: What it computes.
        weights: Its tensors, named `model.layers.N.self_attn.NAME` (names: `memory.parameter_shapes`).
        metadata: Where it came from, as kept in the safetensors file.
        source: The folder or repo it was read from, for messages.
        file: The name of the weights file it was read from, which tells its format.
    """

    config: DeltaMemConfig
    weights: Mapping[str, mx.array]
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "the adapter"
    file: str = WEIGHTS_FILE

    @property
    def parameters(self) -> int:
        """How many numbers its weights are, heads without an effect included."""
        return sum(tensor.size for tensor in self.weights.values())

    @property
    def state_bytes(self) -> int:
        """The bytes of the memory of one sequence: a float32 state for each layer."""
        return len(self.weights_by_layer()) * math.prod(self.config.state_shape) * 4

    def weights_by_layer(self) -> dict[int, dict[str, mx.array]]:
        """The tensors of each layer by their own name, those of no layer left out."""
        layers: dict[int, dict[str, mx.array]] = defaultdict(dict)
        for key, tensor in self.weights.items():
            if (match := _KEY.fullmatch(key)) and match["path"].rpartition(".")[2] in self.config.target_modules:
                layers[int(match["layer"])][match["name"]] = tensor
        return dict(layers)


def changed(metadata: Mapping[str, str], done: str) -> str:
    """What an adapter's file tells under `changed` when, after what its metadata tell, this was done to it."""
    return f"{metadata['changed']}, then {done}" if "changed" in metadata else done


def dtype_name(dtype: mx.Dtype) -> str:
    """`float32`, not `mlx.core.float32`."""
    return str(dtype).rpartition(".")[2]


def weight_key(layer: int, path: str, name: str) -> str:
    """The name of a tensor in an adapter: `path` is the attention module's name within the layer."""
    return f"model.layers.{layer}.{path}.{name}"


def check_weights(
    adapter: Adapter, shapes: Mapping[int, AttentionShape] | None = None, num_layers: int | None = None
) -> None:
    """Check an adapter against itself or, given its layers' shapes, against a model.

    Raises:
        ValueError: Tensors are missing, unknown, misshapen, not finite or not of a float type, or there are none at
            all, or the model lacks layers; one line that lists everything.
    """
    layers = adapter.weights_by_layer()
    if not layers:
        raise ValueError(f"{adapter.source}: none of its {len(adapter.weights)} tensors belongs to a δ-mem adapter")
    problems: dict[str, list[int]] = defaultdict(list)
    for layer in sorted(layers.keys() | (adapter.config.target_layers if shapes is None else shapes)):
        if num_layers is not None and layer >= num_layers:
            problems[f"the model has {num_layers} layers"].append(layer)
        elif shapes is not None and layer not in shapes:
            problems["no memory goes there in this model"].append(layer)
        else:
            tensors = layers.get(layer, {})
            shape = _shape_of(tensors) if shapes is None else shapes[layer]
            for problem in _layer_problems(adapter.config, tensors, shape):
                problems[problem].append(layer)
    strays = len(adapter.weights) - sum(map(len, layers.values()))
    listed = [f"{strays} tensors have names of no δ-mem layer"] if strays else []
    listed += [f"{problem} ({layer_list(found)})" for problem, found in problems.items()]
    if listed:
        raise ValueError(f"{adapter.source} does not fit: {'; '.join(listed)}")


def _layer_problems(config: DeltaMemConfig, tensors: Mapping[str, mx.array], shape: AttentionShape) -> list[str]:
    expected, optional = parameter_shapes(config, shape), inactive_parameters(config)
    problems = [f"{name} is missing" for name in expected if name not in tensors and name not in optional]
    problems += [f"{name} is unknown to its config" for name in tensors if name not in expected]
    queries = tensors.get("memory_q_proj")
    if queries is not None and queries.ndim == 2 and queries.shape[1] != shape.hidden:
        problems.append(f"it belongs to a backbone of hidden size {queries.shape[1]}, not {shape.hidden}")
    for name in expected.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.shape != expected[name]:
            problems.append(f"{name} has shape {tensor.shape}, expected {expected[name]}")
        elif not mx.issubdtype(tensor.dtype, mx.floating):
            problems.append(f"{name} is of {tensor.dtype}, expected a float type")
        elif not mx.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinite values")
    return sorted(problems)


def _shape_of(tensors: Mapping[str, mx.array]) -> AttentionShape:
    """The attention layer that an adapter's tensors are made for, as far as they tell."""
    queries = tensors.get("memory_q_proj")
    hidden = queries.shape[-1] if queries is not None else 0
    heads = {head: tensors.get(f"delta_{head}_proj") for head in "qkvo"}
    return AttentionShape(hidden, **{head: 0 if tensor is None else tensor.shape[0] for head, tensor in heads.items()})


def layer_list(layers: Iterable[int]) -> str:
    """`layers 0-3, 7`"""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    listing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"layer {listing}" if listing.isdigit() else f"layers {listing}"
