"""Check a model's config.json against what mlx-lm's class for its `model_type` expects."""

import dataclasses
import importlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

from mlx_deltamem.adapters.json_file import read_json_object, read_text

CONFIG = "config.json"
_GENERATION = "generation_config.json"
# Fields that no model can have below 1.
_SIZES = frozenset(
    {"head_dim", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size"}
)
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_OBJECTS = ("quantization", "quantization_config", "rope_parameters", "rope_scaling", "text_config")
_LARGEST = 2**31 - 1
_NUMBERS = {int: "an integer", float: "a number"}


def read_config(folder: Path, overrides: Mapping[str, object] | None = None) -> dict[str, object]:
    """Read a model's config.json, and check the fields that decide whether mlx-lm can make such a model.

    Args:
        folder: The folder of the model.
        overrides: Fields that replace those of the file.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: It is damaged, or fields are missing or wrong; the error lists them all.
    """
    path = folder / CONFIG
    config = read_json_object(path) | dict(overrides or {})
    if "model_type" not in config:
        raise ValueError(f"{path} has no model_type; expected the name of an architecture, such as qwen3")
    if not isinstance(config["model_type"], str) or not config["model_type"]:
        raise ValueError(
            f"{path} has the model_type {shown(config['model_type'])}; expected the name of an architecture, such as "
            "qwen3"
        )
    if problems := [*_wrong_numbers(config), *_wrong_ends(config)]:
        raise ValueError(f"{path} {'; '.join(problems)}: correct it, or use a complete copy of the model")
    _check_generation(folder / _GENERATION)
    return config


def check_layers(folder: Path, config: Mapping[str, object], tensors: int) -> None:
    """Check that a model has no more layers than its weights have tensors. Making too many would use up the memory.

    Raises:
        ValueError: It has.
    """
    for name in _LAYERS:
        count = config.get(name)
        if isinstance(count, int) and count > tensors:
            raise ValueError(
                f"{folder / CONFIG} has {name} {shown(count)}, but the weights have {tensors:,} tensors; expected at "
                "least one for each layer: use a complete copy of the model"
            )


def suspected_fields(config: Mapping[str, object]) -> list[str]:
    """Return what may be wrong with a config of which mlx-lm could not make a model, as `has hidden_size null; ...`."""
    found = []
    for name, kinds, required in _fields(config):
        if name not in config:
            continue
        value = config[name]
        if value is None and required and type(None) not in kinds:
            found.append(f"has {name} null; expected {_expected(kinds)}")
        elif value is not None and not _is_of(value, kinds):
            found.append(f"has {name} {shown(value)}; expected {_expected(kinds)}")
    for name in _OBJECTS:
        # Null counts as absent, except that mlx-lm looks into text_config.
        null: object = None if name == "text_config" else {}
        if name in config and not isinstance(null if config[name] is None else config[name], dict):
            found.append(f"has {name} {shown(config[name])}; expected a JSON object")
    found += _odd_quantization(config)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, str | list) or not all(isinstance(each, str) for each in architectures):
        found.append(f"has architectures {shown(architectures)}; expected a list of names")
    return list(dict.fromkeys(found))


def shown(value: object) -> str:
    """A value of a JSON file for an error message, on one line and not too long."""
    text = "null" if value is None else repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:60] + "..."


def _wrong_numbers(config: Mapping[str, object]) -> Iterator[str]:
    """Fields with which no model can be made, or with which it fails later, when it runs."""
    missing = [name for name, _, required in _fields(config) if required and name not in config]
    if missing:
        yield f"has no {', '.join(missing)}; expected all fields of the architecture {config['model_type']}"
    for name, kinds, _ in _fields(config):
        value = _untagged(config.get(name))
        numeric = kinds <= {int, float, type(None)}
        if numeric and isinstance(value, str | list | dict) and not _is_by_layer(value, config):
            yield f"has {name} {shown(value)}; expected {_expected(kinds)}"
        elif numeric and isinstance(value, float) and math.isnan(value):
            yield f"has {name} NaN; expected {_expected(kinds)}"
    for name in _SIZES & {name for name, _, _ in _fields(config)}:
        value = config.get(name)
        if isinstance(value, int) and not 1 <= value <= _LARGEST:
            yield f"has {name} {shown(value)}; expected 1 to {_LARGEST:,}"


def _is_by_layer(value: object, config: Mapping[str, object]) -> bool:
    """Whether a value has a number for each layer. Some of mlx-lm's classes accept that where they declare one."""
    layers = config.get("num_hidden_layers")
    if not isinstance(value, list) or not isinstance(layers, int) or len(value) < max(layers, 1):
        return False
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)


def _wrong_ends(config: Mapping[str, object]) -> Iterator[str]:
    if not _are_token_ids(config.get("eos_token_id")):
        yield f"has eos_token_id {shown(config['eos_token_id'])}; expected the id of a token, or a list of ids"


def _are_token_ids(value: object) -> bool:
    return value is None or all(type(each) is int for each in (value if isinstance(value, list) else [value]))


def _check_generation(path: Path) -> None:
    """Check the file from which mlx-lm takes the tokens that end a reply. It ignores one that is not JSON."""
    if not path.exists():
        return
    try:
        json.loads(read_text(path))
    except json.JSONDecodeError:
        return
    except RecursionError:
        # The next line tells it.
        pass
    found = read_json_object(path)
    if not _are_token_ids(found.get("eos_token_id")):
        raise ValueError(
            f"{path} has eos_token_id {shown(found['eos_token_id'])}; expected the id of a token, or a list of ids"
        )


def _odd_quantization(config: Mapping[str, object]) -> list[str]:
    found = []
    quantization = config.get("quantization")
    if isinstance(quantization, dict):
        for name in ("group_size", "bits"):
            value = quantization.get(name)
            if type(value) is not int or value < 1:
                problem = "no " + name if name not in quantization else f"{name} {shown(value)}"
                found.append(f"has {problem} in quantization; expected an integer")
        if not isinstance(quantization.get("mode", ""), str):
            found.append(f"has mode {shown(quantization['mode'])} in quantization; expected a name, such as affine")
    other = config.get("quantization_config")
    if isinstance(other, dict) and other and quantization is None and not isinstance(other.get("quant_method"), str):
        found.append("has no quant_method in quantization_config; expected a name, such as mxfp4")
    return found


def _fields(config: Mapping[str, object]) -> Iterator[tuple[str, frozenset[type], bool]]:
    """The fields of mlx-lm's class for a config: name, the types of its values, and whether it has no default."""
    name = str(config["model_type"])
    # The class depends on more than the name, or comes with the model.
    if config.get("model_file") is not None or any(name == each for each, _ in MODEL_ARCHITECTURE_REMAPPING):
        return
    try:
        made = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}").ModelArgs
        # Such a class does not take the fields as they are, but makes others of them.
        if any("from_dict" in vars(each) for each in made.__mro__ if each.__name__ != "BaseModelArgs"):
            return
        fields, hints = dataclasses.fields(made), get_type_hints(made)
    # mlx-lm reports an architecture that it does not know, or whose module cannot be imported here.
    except Exception:
        return
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init:
            yield field.name, frozenset(_types(hints[field.name])), required


def _types(hint: object) -> Iterator[type]:
    """The classes of a type hint: those of each member of a union, and `list` for `list[int]`."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        for member in get_args(hint):
            yield from _types(member)
    else:
        kind = origin or hint
        yield kind if isinstance(kind, type) and kind is not Any else object


def _is_of(value: object, kinds: frozenset[type]) -> bool:
    value = _untagged(value)
    if isinstance(value, int) and float in kinds:
        return True
    # JSON has no tuples.
    if isinstance(value, list) and tuple in kinds:
        return True
    if isinstance(value, bool) and bool not in kinds:
        return object in kinds
    return isinstance(value, tuple(kinds))


def _untagged(value: object) -> object:
    """Transformers writes an infinite number as `{"__float__": "Infinity"}`."""
    if isinstance(value, dict) and set(value) == {"__float__"} and isinstance(value["__float__"], str):
        return math.inf
    return value


def _expected(kinds: frozenset[type]) -> str:
    names = {**_NUMBERS, str: "a text", bool: "true or false", list: "a list", tuple: "a list", dict: "a JSON object"}
    found = sorted({names[kind] for kind in kinds if kind in names and not (kind is int and float in kinds)})
    return " or ".join(found) or "another value"
