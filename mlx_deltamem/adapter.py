"""Adapters as folders: `delta_mem_config.json` and `delta_mem_adapter.safetensors`, with the reference's tensor names.

Files of the reference (`delta_mem_adapter.pt`) and of the other MLX port (`delta_mem_adapter_mlx.npz`) are read too.
"""

import hashlib
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_deltamem import torch_file
from mlx_deltamem._version import __version__
from mlx_deltamem.card import card_text
from mlx_deltamem.config import CONFIG_FILE, DeltaMemConfig
from mlx_deltamem.files import new_file, new_folder
from mlx_deltamem.hub import conversion_folder, find_adapter
from mlx_deltamem.memory import AttentionShape, inactive_parameters, parameter_shapes

WEIGHTS_FILE = "delta_mem_adapter.safetensors"
TORCH_FILE = "delta_mem_adapter.pt"
NPZ_FILE = "delta_mem_adapter_mlx.npz"

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
        """The size of the memory it gives to one sequence: a float32 state `[H, r, r]` for each layer."""
        return len(self.weights_by_layer()) * self.config.num_state_heads * self.config.rank**2 * 4

    def weights_by_layer(self) -> dict[int, dict[str, mx.array]]:
        """The tensors of each layer by their own name, those of no layer left out."""
        layers: dict[int, dict[str, mx.array]] = defaultdict(dict)
        for key, tensor in self.weights.items():
            if (match := _KEY.fullmatch(key)) and match["path"].rpartition(".")[2] in self.config.target_modules:
                layers[int(match["layer"])][match["name"]] = tensor
        return dict(layers)


def weight_key(layer: int, path: str, name: str) -> str:
    """The name of a tensor in an adapter: `path` is the attention module's name within the layer."""
    return f"model.layers.{layer}.{path}.{name}"


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter from a folder or from the Hub (`USER/NAME`, `USER/NAME@REVISION`).

    A repo in the format of the reference or of the other MLX port is converted once, and the copy is kept beside the
    Hub's cache.

    Raises:
        FileNotFoundError: There is no such folder or repo, or it lacks the config or the weights.
        ValueError: A file is damaged, or the adapter is not whole; every problem is listed.
    """
    folder = find_adapter(path)
    converted = conversion_folder(folder)
    if converted is not None and converted.is_dir():
        # A copy that is damaged is made again.
        with suppress(ValueError, FileNotFoundError):
            return replace(_read(converted), source=str(path))
    adapter = replace(_read(folder), source=str(path))
    if converted is not None and adapter.file != WEIGHTS_FILE:
        # The copy saves a second conversion and is no more than that; another process may be making it just now.
        with suppress(OSError):
            save_adapter(adapter, converted)
    return adapter


def save_adapter(adapter: Adapter, path: str | Path) -> None:
    """Write an adapter's folder; files of an adapter that is there already are replaced.

    To save what a model was trained to, give `current_adapter(model)`.

    Raises:
        ValueError: The adapter is not whole.
        OSError: The folder cannot be written; what was there is still there.
    """
    check_weights(adapter)
    path = Path(path)
    if path.exists():
        _write(adapter, path)
    else:
        with new_folder(path) as folder:
            _write(adapter, folder)


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
    listed += [f"{problem} ({_layer_list(found)})" for problem, found in problems.items()]
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


def _layer_list(layers: Iterable[int]) -> str:
    """`layers 0-3, 7`"""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    listing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return f"layer {listing}" if listing.isdigit() else f"layers {listing}"


def _read(folder: Path) -> Adapter:
    weights_file = next((folder / name for name in _READERS if (folder / name).is_file()), None)
    missing = [CONFIG_FILE] if not (folder / CONFIG_FILE).is_file() else []
    missing += [f"{WEIGHTS_FILE} (or {TORCH_FILE}, or {NPZ_FILE})"] if weights_file is None else []
    if missing:
        raise FileNotFoundError(f"{folder} is no δ-mem adapter: it lacks {' and '.join(missing)}{_what_it_is(folder)}")
    weights, metadata = _READERS[weights_file.name](weights_file)
    adapter = Adapter(DeltaMemConfig.load(folder / CONFIG_FILE), weights, metadata, str(folder), weights_file.name)
    check_weights(adapter)
    return adapter


def _what_it_is(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "; it is a LoRA or PEFT adapter, which mlx-lm loads with --adapter-path"
    if (folder / "config.json").is_file():
        return "; it is a model, which goes to --model"
    return ""


def _read_safetensors(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        weights, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(weights)
        return weights, metadata
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({error}); expected a safetensors file") from None


def _read_torch(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    return torch_file.load(path), _provenance(path)


def _read_npz(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: mx.array(arrays[name]) for name in arrays.files}, _provenance(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); expected an npz file of float arrays") from None


_READERS = {WEIGHTS_FILE: _read_safetensors, TORCH_FILE: _read_torch, NPZ_FILE: _read_npz}


def _provenance(path: Path) -> dict[str, str]:
    return {"converted_from": path.name, "converted_from_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _write(adapter: Adapter, folder: Path) -> None:
    metadata = dict(adapter.metadata) | {"format": "mlx", "mlx_deltamem": __version__}
    # Both are written before either takes its place.
    with new_file(folder / CONFIG_FILE) as config, new_file(folder / WEIGHTS_FILE) as weights:
        config.write_text(adapter.config.to_json(), encoding="utf-8")
        mx.save_safetensors(str(weights), dict(adapter.weights), metadata)
    card = folder / "README.md"
    if not card.exists():
        card.write_text(card_text(adapter.config, adapter.parameters, metadata), encoding="utf-8")
