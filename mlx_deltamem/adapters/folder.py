"""Adapters as folders: `delta_mem_config.json`, `delta_mem_adapter.safetensors` and a card.

Files of the reference (`delta_mem_adapter.pt`) and of other MLX ports (`delta_mem_adapter_mlx.npz`,
`adapter.safetensors`) are read too.
"""

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.card.card import card_metadata, refresh_card
from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER, AdapterFolder, find_adapter
from mlx_deltamem.adapters.npz import load_npz
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.core.adapter import WEIGHTS_FILE, Adapter, check_weights
from mlx_deltamem.core.config import CONFIG_FILE, DeltaMemConfig
from mlx_deltamem.files.atomic import new_file, new_folder

TORCH_FILE = "delta_mem_adapter.pt"
NPZ_FILE = "delta_mem_adapter_mlx.npz"
PLAIN_FILE = "adapter.safetensors"

_FEW_FILES = 5


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter from a folder or from the Hub (`USER/NAME`, `USER/NAME@REVISION`).

    A repo in the format of the reference or of another MLX port is converted once, and the copy is kept beside the
    Hub's cache.

    Raises:
        FileNotFoundError: There is no such folder or repo, or it lacks the config or the weights.
        ValueError: A file is damaged, or the adapter is not whole; every problem is listed.
    """
    folder = find_adapter(path)
    if folder.converted is not None and folder.converted.is_dir():
        # A copy that is damaged is made again.
        with suppress(ValueError, FileNotFoundError):
            return replace(_read(AdapterFolder(folder.converted)), source=str(path))
    adapter = replace(_read(folder), source=str(path))
    if folder.converted is not None and adapter.file != WEIGHTS_FILE:
        # The copy saves a second conversion and is no more than that; another process may be making it just now.
        with suppress(OSError):
            save_adapter(adapter, folder.converted)
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


def _read(folder: AdapterFolder) -> Adapter:
    path = folder.path
    weights_file = next((path / name for name in _READERS if (path / name).is_file()), None)
    missing = [CONFIG_FILE] if not (path / CONFIG_FILE).is_file() else []
    missing += [f"{WEIGHTS_FILE} (or {TORCH_FILE}, {NPZ_FILE} or {PLAIN_FILE})"] if weights_file is None else []
    if missing:
        lacking, kind = " and ".join(missing), _what_it_is(folder.listing())
        raise FileNotFoundError(f"{folder.repo or path} is no δ-mem adapter: it lacks {lacking}; it {kind}")
    weights, metadata = _READERS[weights_file.name](weights_file)
    metadata |= card_metadata(path)
    if "source_adapter" not in metadata:
        metadata |= _source(folder, metadata.get("license"))
    adapter = Adapter(DeltaMemConfig.load(path / CONFIG_FILE), weights, metadata, str(path), weights_file.name)
    check_weights(adapter)
    return adapter


def _what_it_is(files: list[str]) -> str:
    if "adapter_config.json" in files:
        return "is a LoRA or PEFT adapter, which mlx-lm loads with --adapter-path"
    if "config.json" in files:
        return "is a model, which goes to --model"
    shown = [*files[:_FEW_FILES], *(["..."] if len(files) > _FEW_FILES else [])]
    return f"holds {', '.join(shown)}" if files else "is empty"


def _source(folder: AdapterFolder, licence: str | None) -> dict[str, str]:
    """Whose adapter this is, for what is made from it."""
    if folder.source is None:
        return {}
    licence = licence or ("cc-by-4.0" if folder.repo == REFERENCE_ADAPTER else None)
    return {"source_adapter": folder.source} | ({"source_license": licence} if licence else {})


def _read_safetensors(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        weights, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(weights)
        return weights, metadata
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged ({error}); expected a safetensors file") from None


def _read_torch(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    return load_torch(path), _provenance(path)


def _read_npz(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    return load_npz(path), _provenance(path)


def _read_plain(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    weights, metadata = _read_safetensors(path)
    return weights, metadata | _provenance(path)


# Where a folder has several, the first is read.
_READERS = {WEIGHTS_FILE: _read_safetensors, TORCH_FILE: _read_torch, NPZ_FILE: _read_npz, PLAIN_FILE: _read_plain}


def _provenance(path: Path) -> dict[str, str]:
    return {"converted_from": path.name, "converted_from_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _write(adapter: Adapter, folder: Path) -> None:
    metadata = dict(adapter.metadata) | {"format": "mlx", "mlx_deltamem": __version__}
    # Both are written before either takes its place.
    with new_file(folder / CONFIG_FILE) as config, new_file(folder / WEIGHTS_FILE) as weights:
        config.write_text(adapter.config.to_json(), encoding="utf-8")
        mx.save_safetensors(str(weights), dict(adapter.weights), metadata)
    # A card that cannot be read is the user's to mend, and no reason not to keep the weights.
    with suppress(ValueError, IsADirectoryError):
        refresh_card(folder, replace(adapter, metadata=metadata))
