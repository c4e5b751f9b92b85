"""Read and write adapters as folders: `delta_mem_config.json` and `delta_mem_adapter.safetensors`.

The weights files of the reference (`delta_mem_adapter.pt`) and of other MLX ports (`delta_mem_adapter_mlx.npz`,
`adapter.safetensors`) are read as well. Model cards are neither read nor written here; see `card.folder`.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import mlx.core as mx

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.expected import check_expected
from mlx_deltamem.adapters.hub import AdapterFolder, find_adapter
from mlx_deltamem.adapters.names import REFERENCE_ADAPTER
from mlx_deltamem.adapters.npz import load_npz
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.adapters.untrusted import Shapes, shown
from mlx_deltamem.core.adapter import WEIGHTS_FILE, Adapter, check_weights
from mlx_deltamem.core.config import CONFIG_FILE, DeltaMemConfig
from mlx_deltamem.files.atomic import check_utf8, new_file, new_folder, one_line, written_by_mlx
from mlx_deltamem.files.safetensors import check_safetensors

TORCH_FILE = "delta_mem_adapter.pt"
NPZ_FILE = "delta_mem_adapter_mlx.npz"
PLAIN_FILE = "adapter.safetensors"

_FEW_FILES = 5


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter from a folder or from the Hub (`USER/NAME`, `USER/NAME@REVISION`).

    A repo in the format of the reference or of another MLX port is converted once; the copy is kept beside the Hub's
    cache. The metadata of the returned adapter are those of its weights file, with `source_adapter` added for a repo.
    The model card is not read: the commands use `card.folder.load_with_card`, which adds the card's licence and model.

    Raises:
        FileNotFoundError: There is no such folder or repo, or it lacks the configuration or the weights.
        ValueError: A file is damaged, or the adapter is not complete; the message lists every problem.
    """
    return load_found(find_adapter(path))


def save_adapter(adapter: Adapter, path: str | Path) -> None:
    """Write the configuration and the weights of an adapter into a folder, which is created if it does not exist.

    The files of an adapter that is already there are replaced. To save a model's adapter after training, pass
    `current_adapter(model)`.

    No model card is written, and one that is already in the folder is left as it is, even if it describes the earlier
    weights. `mlx_deltamem.upload` completes the card; `card.folder.save_with_card` writes it together with the adapter.

    Raises:
        ValueError: The adapter is not complete, or the path is not UTF-8.
        OSError: The folder cannot be written; files that were there are unchanged.
    """
    check_weights(adapter)
    path = Path(path)
    check_utf8(path)
    with (
        nullcontext(path) if path.exists() else new_folder(path) as folder,
        # Both files are complete before either replaces an old one.
        new_file(folder / CONFIG_FILE) as config,
        new_file(folder / WEIGHTS_FILE) as weights,
    ):
        config.write_text(adapter.config.to_json(), encoding="utf-8")
        # By its name: the folder may be a temporary one.
        with written_by_mlx(Path(WEIGHTS_FILE)):
            mx.save_safetensors(str(weights), dict(adapter.weights), saved_metadata(adapter))


def saved_metadata(adapter: Adapter) -> dict[str, str]:
    """Return the metadata that `save_adapter` writes into the weights file."""
    return dict(adapter.metadata) | {"format": "mlx", "mlx_deltamem": __version__}


def load_found(found: AdapterFolder, known: Mapping[str, str] | None = None) -> Adapter:
    """Read the adapter in a folder from `find_adapter`.

    Args:
        found: The folder.
        known: More metadata, for instance from a model card. They replace those of the weights file.

    Raises:
        FileNotFoundError: The folder lacks the configuration or the weights.
        ValueError: A file is damaged, or the adapter is not complete.
    """
    copy = found.converted
    if copy is not None and copy.is_dir():
        # A damaged copy is made again below.
        with suppress(ValueError, FileNotFoundError):
            return _with_origin(_read(AdapterFolder(copy, str(copy))), found, known)
    adapter = _with_origin(_read(found), found, known)
    if copy is not None and adapter.file != WEIGHTS_FILE:
        # The copy only saves time, and another process may be writing it at the same moment.
        with suppress(OSError):
            save_adapter(adapter, copy)
    return adapter


def _read(found: AdapterFolder) -> Adapter:
    """Read the files of a folder; the metadata are those of the weights file."""
    path = found.path
    name = next((name for name in _READERS if (path / name).is_file()), None)
    missing = [] if (path / CONFIG_FILE).is_file() else [CONFIG_FILE]
    if name is None:
        missing.append(f"{WEIGHTS_FILE} (or {TORCH_FILE}, {NPZ_FILE} or {PLAIN_FILE})")
    if name is None or missing:
        content = _content(found.listing())
        raise FileNotFoundError(
            f"{found.repo or path} is not a δ-mem adapter: it lacks {' and '.join(missing)}; it {content}"
        )
    config = DeltaMemConfig.load(path / CONFIG_FILE)
    # Called with the shapes in a file before any of its numbers is read.
    check = partial(check_expected, str(path), config)
    weights, metadata = _READERS[name](path / name, check)
    if name != WEIGHTS_FILE:
        digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
        metadata |= {"converted_from": name, "converted_from_sha256": digest}
    adapter = Adapter(config, weights, metadata, str(path), name)
    check_weights(adapter)
    return adapter


def _content(files: list[str]) -> str:
    """Describe a folder that is not an adapter, for an error."""
    if "adapter_config.json" in files:
        return "is a LoRA or PEFT adapter, which mlx-lm loads with --adapter-path"
    if "config.json" in files:
        return "is a model, which goes to --model"
    first = [*files[:_FEW_FILES], *(["..."] if len(files) > _FEW_FILES else [])]
    return f"holds {', '.join(first)}" if files else "is empty"


def _with_origin(adapter: Adapter, found: AdapterFolder, known: Mapping[str, str] | None) -> Adapter:
    """Add the known metadata and, for a Hub repo, the repo and its licence, for the cards of adapters made from it."""
    metadata = dict(adapter.metadata) | dict(known or {})
    if found.source is not None and metadata.setdefault("source_adapter", found.source) == found.source:
        licence = metadata.get("license") or ("cc-by-4.0" if found.repo == REFERENCE_ADAPTER else None)
        if licence is not None:
            metadata.setdefault("source_license", licence)
    return replace(adapter, metadata=metadata, source=found.name)


def _read_safetensors(path: Path, check: Callable[[Shapes], object]) -> tuple[dict[str, mx.array], dict[str, str]]:
    check_utf8(path)
    header = check_safetensors(path)
    # MLX has no reader for them.
    if doubles := [name for name, entry in header.tensors.items() if entry.dtype == "F64"]:
        raise ValueError(f"{path} holds {shown(doubles[0])} as F64; save it again as F32, BF16 or F16")
    check({name: entry.shape for name, entry in header.tensors.items()})
    try:
        # mlx's annotation covers all the formats that mx.load reads.
        loaded = cast("tuple[dict[str, mx.array], dict[str, str]]", mx.load(str(path), return_metadata=True))
        mx.eval(loaded[0])
        return loaded
    # MLX's JSON reader accepts names that are no UTF-8, and does not document its other errors.
    except (RuntimeError, UnicodeDecodeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); expected a safetensors file") from None


_Reader = Callable[[Path, Callable[[Shapes], object]], tuple[dict[str, mx.array], dict[str, str]]]
# If a folder has several of these files, the first one is read.
_READERS: dict[str, _Reader] = {
    WEIGHTS_FILE: _read_safetensors,
    TORCH_FILE: lambda path, check: (load_torch(path, check), {}),
    NPZ_FILE: lambda path, check: (load_npz(path, check), {}),
    PLAIN_FILE: _read_safetensors,
}
