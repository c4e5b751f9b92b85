"""Check a safetensors file from its header, before MLX opens it.

The format: eight bytes with the length of the header, the header as JSON, and the numbers of all tensors
(https://github.com/huggingface/safetensors#format). MLX allocates what the header asks for. Two tensors may not share
their numbers there, so no file needs more memory than its own size.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlx_deltamem.files.jsonl import Json, parsed_json

_LENGTH_BYTES = 8
# Beside the tensors, the header of a session file has the texts of the chat.
MOST_HEADER_BYTES = 64 << 20
_MOST_VALUES = 500_000
_MAX_SIZE, _MAX_DIMENSIONS = 2**31 - 1, 32
# Bytes of one number. Other types take less than a byte, or are not known here: MLX decides about those.
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_METADATA = "__metadata__"
_LFS_POINTER = b"version https://git-lfs"
_MOST_SHOWN = 60


@dataclass(frozen=True)
class TensorEntry:
    """The entry of a header for one tensor: the name of its dtype, such as `BF16`, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a safetensors file.

    Attributes:
        tensors: The tensors by name.
        metadata: The texts that the file has beside the tensors.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


class NoHeaderError(ValueError):
    """A file does not begin as a safetensors file does: it may be a file of any other kind."""


def check_safetensors(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file and compare it with the file's size. No tensor is read.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        NoHeaderError: It is no safetensors file, or what it begins with is damaged.
        ValueError: It was cut short, or its header is damaged. The message is one line that begins with the path, and
            names the tensor if it is about one.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a safetensors file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(max(_LENGTH_BYTES, len(_LFS_POINTER)))
        if start == _LFS_POINTER:
            raise ValueError(f"{path} is a pointer of Git LFS; expected the file itself: run `git lfs pull` there")
        length = struct.unpack("<Q", start[:_LENGTH_BYTES])[0] if len(start) >= _LENGTH_BYTES else 0
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - _LENGTH_BYTES):
            problem = f"has {size:,} bytes and no header (its length would be {length:,})"
            raise _damaged(path, problem, NoHeaderError)
        file.seek(_LENGTH_BYTES)
        header, problem = parsed_json(file.read(length), _MOST_VALUES)
    if problem or not isinstance(header, dict):
        raise _damaged(path, f"has a header that is {problem or 'not a JSON object'}", NoHeaderError)
    # MLX writes null if there is no metadata.
    metadata = header.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"has a {_METADATA} that is not made of texts")
    room = size - _LENGTH_BYTES - length
    found = {name: _entry(path, _shown(name), entry, room) for name, entry in header.items()}
    last = 0
    for begin, end in sorted(span for _, span in found.values() if span[0] < span[1]):
        if begin < last:
            raise _damaged(path, "has two tensors that share their numbers")
        last = end
    tensors = {name: entry for name, (entry, _) in found.items()}
    return SafetensorsHeader(tensors, cast("dict[str, str]", metadata))


def _entry(path: Path, name: str, value: Json, room: int) -> tuple[TensorEntry, tuple[int, int]]:
    """The entry of one tensor, and its place in the `room` bytes after the header."""
    if not isinstance(value, dict):
        raise _damaged(path, f"has no description of the tensor {name}")
    dtype, shape, offsets = value.get("dtype"), _counts(value.get("shape")), _counts(value.get("data_offsets"))
    if not isinstance(dtype, str):
        raise _damaged(path, f"has no dtype for the tensor {name}")
    if shape is None or len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_SIZE:
        raise _damaged(path, f"has the shape {_shown(value.get('shape'))} for the tensor {name}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"has the data_offsets {_shown(value.get('data_offsets'))} for the tensor {name}")
    begin, end = offsets
    if end > room:
        raise ValueError(
            f"{path} was cut short: the tensor {name} ends at byte {end:,} of the data, which has {room:,}; use a "
            "complete copy"
        )
    expected = math.prod(shape) * _BYTES.get(dtype, 0)
    if dtype in _BYTES and expected != end - begin:
        problem = f"has {end - begin:,} bytes for the tensor {name}, but its shape and dtype take {expected:,}"
        raise _damaged(path, problem)
    return TensorEntry(dtype, shape), (begin, end)


def _counts(value: Json) -> tuple[int, ...] | None:
    """The numbers of a list of counts; None if it is something else."""
    if isinstance(value, list):
        counts = [each for each in value if isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**63]
        return tuple(counts) if len(counts) == len(value) else None
    return None


def _shown(value: Json) -> str:
    text = repr(value[:_MOST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def _damaged(path: Path, problem: str, kind: type[ValueError] = ValueError) -> ValueError:
    return kind(f"{path} is damaged: it {problem}; expected a safetensors file: use a complete copy")
