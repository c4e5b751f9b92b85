"""The kinds of files, for errors about files that are not session files."""

import codecs
from pathlib import Path

from mlx_deltamem.adapters.folder import NPZ_FILE, PLAIN_FILE, TORCH_FILE
from mlx_deltamem.core.adapter import WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.files.safetensors import NoHeaderError, SafetensorsHeader, check_safetensors
from mlx_deltamem.sessions.foreign.folder import foreign_format

_BEGINNING = 4096
# mlx-lm gives the JSON of a chat this name in the metadata of its file.
_SESSION_KEY = "0.session"


def check_session(path: Path) -> None:
    """Check that a file has the header of a session file, and is as long as the header says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is something else, which the error names; or it was cut short, or its header is damaged.
    """
    kind = foreign_format(path)
    if kind is not None and path.exists():
        raise ValueError(f"{path} is {kind}; expected a session that a chat of mlx_deltamem saved")
    if not path.is_file():
        raise FileNotFoundError(f"there is no session file {path}")
    try:
        header = check_safetensors(path)
    except NoHeaderError:
        header = None
    if header is None or _SESSION_KEY not in header.metadata:
        raise ValueError(
            f"{path} is {_kind(path, header)}; expected a session that a chat saved, or the folder of an adapter"
        )


def _kind(path: Path, header: SafetensorsHeader | None) -> str:
    """The kind of a file that is not a session file, in words; `header` is its header if it is a safetensors file."""
    if path.name in (WEIGHTS_FILE, TORCH_FILE, NPZ_FILE, PLAIN_FILE, CONFIG_FILE):
        return f"a file of the adapter in {path.parent}, which is inspected as a folder"
    if header is not None:
        if any("lora_" in name.lower() for name in header.tensors):
            return "a file of LoRA weights"
        return f"a safetensors file of {len(header.tensors):,} tensors and no chat"
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
