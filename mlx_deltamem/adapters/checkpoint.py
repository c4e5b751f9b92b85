"""The files of a model: checked before mlx-lm reads them, and searched for the cause if mlx-lm fails."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_tb

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.json_file import read_json_object
from mlx_deltamem.adapters.model_config import CONFIG, check_layers, read_config, suspected_fields
from mlx_deltamem.adapters.tokenizer_files import check_tokenizer, tokenizer_problem
from mlx_deltamem.files.safetensors import check_safetensors

# As mlx-lm finds the files of weights.
_WEIGHTS = "model*.safetensors"
_INDEX = "model.safetensors.index.json"
# mlx-lm reads the quantisation from it if config.json has none.
_QUANTIZATION = "hf_quant_config.json"
_OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz")
_PARAMETERS = re.compile(r"(?P<kind>Missing|Received) (?P<count>\d+) parameters(?: not in model)?: (?P<names>.*)", re.S)
_FIELD = re.compile(r"Validation error for field '(?P<name>\w+)':\s*(?:\w+: )?(?P<problem>.*)", re.S)
_FEW = 3
_TEXT = "The quick brown fox"
_LONGEST_CAUSE = 300
# The layers that compute with their weights as they are.
_PLAIN_LAYERS = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.LayerNorm)


def check_checkpoint(folder: Path, overrides: Mapping[str, object] | None = None) -> None:
    """Check the files of a model that mlx-lm is going to load: config, headers of the weights, tokenizer.

    Args:
        folder: The folder of the model.
        overrides: Fields that replace those of its config.json.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged. The error names the file, and the field if there is one.
    """
    config = read_config(folder, overrides)
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        others = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)})
        held = f"it has {', '.join(others[:_FEW])}, which mlx_lm.convert may convert" if others else "it has no weights"
        raise FileNotFoundError(f"{folder} has no {_WEIGHTS}; expected the weights of the model: {held}")
    check_layers(folder, config, sum(len(check_safetensors(path).tensors) for path in files))
    check_tokenizer(folder)


@contextmanager
def one_error(folder: Path, overrides: Mapping[str, object] | None = None) -> Iterator[None]:
    """Turn each error in a block in which mlx-lm loads a model or a tokenizer into one line.

    Args:
        folder: The folder of the model.
        overrides: Fields that replace those of its config.json.

    Raises:
        OSError: A file cannot be read, or is missing.
        ValueError: mlx-lm failed. The error names the folder, the file and the field if they are known, and the cause.
    """
    try:
        yield
    except Exception as error:
        # The system's errors name their file.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(_problem(folder, overrides, error)) from error
    except BaseException as error:
        # The tokenizers library is written in Rust: an error that its authors did not expect is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(_problem(folder, overrides, error)) from error


def check_dtypes(model: nn.Module, folder: Path) -> None:
    """Check that the weights that are not quantised are floating-point numbers. MLX notices only when the model runs.

    Raises:
        ValueError: They are not.
    """
    for name, module in model.named_modules():
        weight = module.get("weight") if type(module) in _PLAIN_LAYERS else None
        if weight is not None and not mx.issubdtype(weight.dtype, mx.floating):
            raise ValueError(
                f"{folder} has weights of dtype {str(weight.dtype).removeprefix('mlx.core.')} for {name}; expected "
                "floating-point numbers, or quantised weights with their scales: use a complete copy of the model"
            )


def check_encodes(tokenizer: TokenizerWrapper, folder: Path) -> None:
    """Check that a tokenizer turns a text into tokens.

    Raises:
        ValueError: It does not.
    """
    try:
        if tokenizer.encode(_TEXT, add_special_tokens=False):
            return
        problem = "it turns text into no tokens"
    # A tokenizer can be a program that came with the model.
    except Exception as error:
        problem = _cause(error)
    raise ValueError(f"{folder}: its tokenizer cannot be used ({problem}); use a complete copy of the model")


def _problem(folder: Path, overrides: Mapping[str, object] | None, error: BaseException) -> str:
    cause = _cause(error)
    functions = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
    if "load_adapters" in functions:
        return f"the LoRA adapter for {folder} cannot be loaded ({cause}); expected one that mlx-lm loads"
    if "load_tokenizer" in functions:
        found = _field_of(folder / CONFIG, error) or tokenizer_problem(folder)
        return found or (
            f"{folder}: its tokenizer cannot be loaded ({cause}); expected one that mlx-lm loads: use a complete "
            "copy of the model"
        )
    if found := _parameter_problem(folder, str(error)) or _file_problem(folder):
        return found
    suspects: list[str] = []
    with suppress(ValueError, OSError):
        suspects = suspected_fields(read_json_object(folder / CONFIG) | dict(overrides or {}))
    if suspects:
        return f"{folder / CONFIG} {'; '.join(suspects)} ({cause}): correct it, or use a complete copy of the model"
    return (
        f"{folder / CONFIG} describes a model that mlx-lm cannot load from this folder ({cause}); use a complete copy "
        "of the model, or another one"
    )


def _field_of(path: Path, error: BaseException) -> str | None:
    """The field of a config.json that transformers refuses; it reads the file to find the class of the tokenizer."""
    if not type(error).__name__.startswith("StrictDataclass"):
        return None
    match = _FIELD.search(str(error))
    problem = " ".join((match["problem"] if match else str(error)).split())[:_LONGEST_CAUSE]
    what = f"has a wrong {match['name']}" if match else "has fields that do not belong together"
    return f"{path} {what} ({problem}); correct it, or use a complete copy of the model"


def _parameter_problem(folder: Path, text: str) -> str | None:
    """The problem, if the names of the parameters in the weights and in the model differ."""
    match = _PARAMETERS.search(text)
    if match is None:
        return None
    names = [name for name in match["names"].rstrip(".").replace(",", " ").split() if name]
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    listed = f"{int(match['count']):,} parameters ({', '.join(names[:_FEW])}{more})"
    if match["kind"] == "Received":
        return f"{folder}: its weights have {listed} that no model of its {CONFIG} has; use files that belong together"
    absent = _absent_files(folder)
    where = f": {', '.join(absent)} of {_INDEX} are not there" if absent else ""
    return f"{folder}: its weights lack {listed} of the model in its {CONFIG}{where}; use a complete copy of the model"


def _file_problem(folder: Path) -> str | None:
    """The problem, if MLX cannot read the header of a file of weights, or if another file of settings is damaged."""
    for path in sorted(folder.glob(_WEIGHTS)):
        try:
            mx.load(str(path))
        except RuntimeError as error:
            return f"{path} cannot be read ({_cause(error)}); expected a safetensors file: use a complete copy"
    try:
        if (folder / _QUANTIZATION).exists():
            read_json_object(folder / _QUANTIZATION)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _absent_files(folder: Path) -> list[str]:
    """The files of weights that the index names and the folder lacks."""
    with suppress(ValueError, OSError):
        names = read_json_object(folder / _INDEX).get("weight_map")
        if isinstance(names, dict):
            return sorted({name for name in names.values() if isinstance(name, str) and not (folder / name).is_file()})
    return []


def _cause(error: BaseException) -> str:
    """The type and the message of an error: its first line, or all lines if that ends in a colon."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    text = " ".join((text if first.rstrip().endswith(":") else first).split())
    text = text if len(text) <= _LONGEST_CAUSE else text[:_LONGEST_CAUSE] + "..."
    plain = type(error) in (Exception, ValueError) or isinstance(error, json.JSONDecodeError)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")
