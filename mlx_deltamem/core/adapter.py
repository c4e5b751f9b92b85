"""An adapter in memory: its configuration and its tensors, under the names that the reference uses."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, inactive_parameters, parameter_shapes

# The files in an adapter's folder, beside its configuration.
WEIGHTS_FILE = "delta_mem_adapter.safetensors"
CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
# The files of the training run, in the same folder.
SETTINGS_FILE = "train_config.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"

# Python refuses to read a number of thousands of digits.
_KEY = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d{1,9})\.(?P<path>.+)\.(?P<name>[^.]+)")


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        config: The configuration.
        weights: The tensors, named `model.layers.N.self_attn.NAME` (for the names, see `shapes.parameter_shapes`).
        metadata: Where the adapter comes from, as stored in the safetensors file.
        source: The folder or repository that it was read from, for messages.
        file: The name of the weights file that it was read from; the ending is the file format.
    """

    config: DeltaMemConfig
    weights: Mapping[str, mx.array]
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "the adapter"
    file: str = WEIGHTS_FILE

    @property
    def parameters(self) -> int:
        """The number of parameters, including correction heads that are not in use."""
        return sum(tensor.size for tensor in self.weights.values())

    @property
    def state_bytes(self) -> int:
        """The size of the memory of one sequence, in bytes: one float32 state for each layer."""
        return len(self.weights_by_layer()) * math.prod(self.config.state_shape) * 4

    def weights_by_layer(self) -> dict[int, dict[str, mx.array]]:
        """For each layer, the tensors by name (`memory_q_proj`, ...); tensors that belong to no layer are left out."""
        layers: dict[int, dict[str, mx.array]] = defaultdict(dict)
        for key, tensor in self.weights.items():
            if (match := _KEY.fullmatch(key)) and match["path"].rpartition(".")[2] in self.config.target_modules:
                layers[int(match["layer"])][match["name"]] = tensor
        return dict(layers)

    def paths_by_layer(self) -> dict[int, str]:
        """For each layer, the name of the attention module within the layer."""
        matches = [match for key in self.weights if (match := _KEY.fullmatch(key))]
        return {int(match["layer"]): match["path"] for match in matches}


def changed(metadata: Mapping[str, str], done: str) -> str:
    """The new value of the metadata entry `changed`, the list of changes to an adapter, with `done` at its end."""
    return f"{metadata['changed']}, then {done}" if "changed" in metadata else done


def dtype_name(dtype: mx.Dtype) -> str:
    """The short name of a dtype: `float32`, not `mlx.core.float32`."""
    return str(dtype).rpartition(".")[2]


def weight_key(layer: int, path: str, name: str) -> str:
    """The full name of a tensor in an adapter; `path` is the name of the attention module within the layer."""
    return f"model.layers.{layer}.{path}.{name}"


def check_weights(
    adapter: Adapter,
    shapes: Mapping[int, AttentionShape] | None = None,
    num_layers: int | None = None,
    elsewhere: Collection[int] = (),
) -> None:
    """Check that the tensors of an adapter fit its configuration and, if `shapes` are given, a model.

    Args:
        adapter: The adapter to check.
        shapes: By layer index, the attention layers of the model that get a memory.
        num_layers: The number of layers of the model.
        elsewhere: The layers that are in other processes of a pipeline, which check them against the model.

    Raises:
        ValueError: The adapter has no tensors; or tensors are missing, unknown, of a wrong shape, not finite, not of a
            float type or of a layer that the configuration leaves out; or the model does not have a layer. The message
            is one line that lists all problems.
    """
    layers = adapter.weights_by_layer()
    if not layers:
        raise ValueError(f"{adapter.source}: none of its {len(adapter.weights)} tensors belongs to a δ-mem adapter")
    problems: dict[str, list[int]] = defaultdict(list)
    targets = adapter.config.target_layers
    for layer in sorted(layers.keys() | (targets if shapes is None else shapes)):
        if num_layers is not None and layer >= num_layers:
            problems[f"the model has {num_layers} layers"].append(layer)
        elif targets and layer not in targets:
            problems["it has tensors that the target_layers of its configuration leave out"].append(layer)
        elif shapes is not None and layer not in shapes and layer not in elsewhere:
            problems["this model has no attention layer for a memory there"].append(layer)
        else:
            tensors = layers.get(layer, {})
            shape = shape_of(tensors) if shapes is None or layer not in shapes else shapes[layer]
            for problem in _layer_problems(adapter.config, tensors, shape):
                problems[problem].append(layer)
    strays = len(adapter.weights) - sum(map(len, layers.values()))
    listed = [f"{strays} tensors belong to no δ-mem layer"] if strays else []
    listed += [f"{problem} ({layer_list(found)})" for problem, found in problems.items()]
    if listed:
        raise ValueError(f"{adapter.source} does not fit: {'; '.join(listed)}")


def _layer_problems(config: DeltaMemConfig, tensors: Mapping[str, mx.array], shape: AttentionShape) -> list[str]:
    expected, optional = parameter_shapes(config, shape), inactive_parameters(config)
    problems = [f"{name} is missing" for name in expected if name not in tensors and name not in optional]
    # A name of a file may have line breaks.
    unknown = [repr(name)[1:-1] for name in tensors if name not in expected]
    problems += [f"{name} is not a tensor of its configuration" for name in unknown]
    queries = tensors.get("memory_q_proj")
    if queries is not None and queries.ndim == 2 and queries.shape[1] != shape.hidden:
        problems.append(f"it belongs to a backbone of hidden size {queries.shape[1]}, not {shape.hidden}")
    for name in expected.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.shape != expected[name]:
            problems.append(f"{name} has shape {tensor.shape}, expected {expected[name]}")
        elif not mx.issubdtype(tensor.dtype, mx.floating):
            problems.append(f"{name} has dtype {dtype_name(tensor.dtype)}, expected a float dtype")
        elif not mx.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinite values")
    return sorted(problems)


def shape_of(tensors: Mapping[str, mx.array]) -> AttentionShape:
    """The attention layer that the tensors of an adapter were made for; 0 for a width that they do not show."""
    queries = tensors.get("memory_q_proj")

    def width(head: str) -> int:
        tensor = tensors.get(f"delta_{head}_proj")
        return tensor.shape[0] if tensor is not None and tensor.ndim else 0

    hidden = queries.shape[-1] if queries is not None and queries.ndim else 0
    return AttentionShape(hidden, q=width("q"), k=width("k"), v=width("v"), o=width("o"))


def layer_list(layers: Iterable[int]) -> str:
    """A list of layer indices in ascending order as text: `layers 0-3, 7`."""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    listing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"layer {listing}" if listing.isdigit() else f"layers {listing}"
