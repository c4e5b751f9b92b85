"""The kinds of files, for errors about files that are not session files."""

import codecs
import json
import struct
from pathlib import Path

from mlx_deltamem.adapters.folder import NPZ_FILE, PLAIN_FILE, TORCH_FILE
from mlx_deltamem.core.adapter import WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.sessions.foreign.folder import foreign_format

_BEGINNING = 4096
_LARGEST_HEADER = 100_000_000
# mlx-lm gives the JSON of a chat this name in the metadata of its file.
_SESSION_KEY = "0.session"


def check_session(path: Path) -> None:
    """Check the beginning and the length of a session file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is something else, which the error names; or it was cut short.
    """
    kind = foreign_format(path)
    if kind is not None and path.exists():
        raise ValueError(f"{path} is {kind}; expected a session that a chat of mlx_deltamem saved")
    if not path.is_file():
        raise FileNotFoundError(f"there is no session file {path}")
    header = _safetensors_header(path)
    if header is None or _SESSION_KEY not in (header.get("__metadata__") or {}):
        raise ValueError(
            f"{path} is {_kind(path, header)}; expected a session that a chat saved, or the folder of an adapter"
        )
    expected, found = _whole_length(path, header), path.stat().st_size
    if found < expected:
        raise ValueError(f"{path} is a session that was cut short ({found:,} of {expected:,} bytes); use a copy of it")


def _kind(path: Path, header: dict | None) -> str:
    """The kind of a file that is not a session file, in words; `header` is its header if it is a safetensors file."""
    if path.name in (WEIGHTS_FILE, TORCH_FILE, NPZ_FILE, PLAIN_FILE, CONFIG_FILE):
        return f"a file of the adapter in {path.parent}, which is inspected as a folder"
    if header is not None:
        tensors = [name for name in header if name != "__metadata__"]
        if any("lora_" in name.lower() for name in tensors):
            return "a file of LoRA weights"
        return f"a safetensors file of {len(tensors):,} tensors and no chat"
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not beginning:
        return "an empty file"
    if beginning.startswith(b"PK"):
        return "a zip archive, as .pt and .npz files are"
    return "a text file" if _is_text(beginning) else "a file of an unknown kind"


def _is_text(beginning: bytes) -> bool:
    try:
        # An incremental decoder accepts a character that is cut at the end.
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return False


def _safetensors_header(path: Path) -> dict | None:
    """The JSON object at the beginning of a safetensors file; None for any other file."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return None
        length = struct.unpack("<Q", start)[0]
        text = file.read(length) if length <= _LARGEST_HEADER else b""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # MLX writes null if there is no metadata.
    return header if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict | None) else None


def _whole_length(path: Path, header: dict) -> int:
    """The length that a safetensors file must have according to its header, in bytes."""
    with path.open("rb") as file:
        begin = 8 + struct.unpack("<Q", file.read(8))[0]
    try:
        return begin + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"))
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{path} is a session, but its header is damaged; use a copy of it") from None
