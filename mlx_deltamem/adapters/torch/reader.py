"""Read the `.pt` file of an adapter without torch, and without executing the pickle in it.

torch.save writes a zip archive of uncompressed entries: `FOLDER/data.pkl` describes the tensors, `FOLDER/data/KEY`
holds the numbers of one storage. Every size in the file is checked before memory is allocated for it.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_STORED

import mlx.core as mx
import numpy as np

from mlx_deltamem.adapters.torch.pickle import DTYPES, EXPECTED, OTHER_DTYPES, Tensor, interpreted, kind_of
from mlx_deltamem.adapters.untrusted import (
    MAX_SIZE,
    RefusedError,
    Shapes,
    damage_in,
    open_file,
    opened_zip,
    read_entry,
    shown,
)

_OTHER_FILES = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a torch file in the format from before torch 1.6"),
    (b"\x80", "is a plain pickle"),
    (b"version https://git-lfs", "is a Git LFS pointer that `git lfs pull` replaces with the file"),
)
# A hundred times the size that the largest adapter needs; it limits the time that a hostile file can take.
_MAX_PICKLE_BYTES = 4 << 20
# Tensors that share no numbers need at most as many bytes as their file has. This slack allows some that do (tied or
# expanded tensors), but not a view that repeats one number a trillion times.
_SHARED_BYTES = 64 << 20


def load_torch(path: Path | str, check: Callable[[Shapes], object] | None = None) -> dict[str, mx.array]:
    """Read the tensors of a `.pt` file that torch.save wrote, bit for bit.

    Args:
        path: A file with a flat dict of float32, bfloat16 or float16 tensors (of any strides, shared, parameters).
        check: Called with the shapes by name before any number is read; it raises ValueError to refuse the file.

    Returns:
        The tensors by name, contiguous, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or has other contents; nothing in it was executed.
    """
    try:
        with open_file(Path(path)) as file:
            archive = _Archive(file)
            content = interpreted(archive.read("data.pkl", _MAX_PICKLE_BYTES))
            if check is not None and isinstance(content, dict):
                check({name: each.size for name, each in content.items() if isinstance(each, Tensor)})
            return _arrays(content, archive)
    except FileNotFoundError:
        raise
    except (OSError, RefusedError) as error:
        raise ValueError(f"{path}: {error}") from error


class _Archive:
    """A zip archive as torch.save writes it; its entries together are no larger than the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(64)
        if not start.startswith(b"PK"):
            raise RefusedError(f"{_other_file(start, self.size)}; {EXPECTED}")
        self.zip = opened_zip(file)
        self.entries = {entry.filename: entry for entry in self.zip.infolist()}
        self.contents: dict[str, bytes] = {}
        self.folder = self._find_folder()
        self._check_entries()
        if f"{self.folder}/byteorder" in self.entries and self.read("byteorder") != b"little":
            raise RefusedError("is not little-endian; re-save it with torch.save on a little-endian machine")

    def _check_entries(self) -> None:
        entries = self.zip.infolist()
        for entry in entries:
            if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
                raise RefusedError(f"has a compressed zip entry {shown(entry.filename)}; re-save it with torch.save")
        if sum(entry.file_size for entry in entries) > self.size:
            raise RefusedError("has zip entries larger than the file, expected them to fit into it; get the file again")

    def _find_folder(self) -> str:
        folders = [name.partition("/")[0] for name in self.entries if name.partition("/")[2] == "data.pkl"]
        if len(folders) != 1:
            raise RefusedError(f"is a zip archive with {len(folders)} FOLDER/data.pkl entries, not one; {EXPECTED}")
        folder = folders[0]
        if any(name.startswith((f"{folder}/constants.pkl", f"{folder}/code/")) for name in self.entries):
            raise RefusedError(f"is a TorchScript program; {EXPECTED}")
        return folder

    def read(self, name: str, most: float = math.inf) -> bytes:
        entry = self.entries.get(f"{self.folder}/{name}")
        if entry is None:
            raise RefusedError(f"lacks the zip entry {shown(name)} that its data.pkl needs; get the file again")
        if entry.file_size > most:
            raise RefusedError(f"has {entry.file_size} bytes in {shown(name)}, expected at most {most}; {EXPECTED}")
        if name not in self.contents:
            self.contents[name] = read_entry(self.zip, entry.filename)
        return self.contents[name]


def _other_file(start: bytes, size: int) -> str:
    if not size:
        return "is empty"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return "is a safetensors file"
    known = (found for prefix, found in _OTHER_FILES if start.startswith(prefix))
    return next(known, f"is not a zip archive, it begins with {start[:8]!r}")


def _arrays(content: object, archive: _Archive) -> dict[str, mx.array]:
    if not isinstance(content, dict):
        raise RefusedError(f"holds {kind_of(content)}; {EXPECTED}")
    room = archive.size + _SHARED_BYTES
    arrays = {}
    for name, tensor in content.items():
        where = f"under '{shown(name)}'"
        if not isinstance(tensor, Tensor):
            raise RefusedError(f"holds {kind_of(tensor)} {where}; {EXPECTED}")
        dtype = _dtype(tensor, where)
        _check_bounds(tensor, where)
        room -= math.prod(tensor.size) * dtype.size
        if room < 0:
            raise RefusedError(f"repeats its numbers {where} far beyond its own size; save it without expanded tensors")
        data = archive.read(f"data/{tensor.storage.key}")
        claimed = tensor.storage.numel * dtype.size
        if len(data) != claimed:
            raise RefusedError(f"has {len(data)} bytes {where}, expected {claimed}; get the file again")
        with damage_in(f"its tensor {where}"):
            arrays[name] = _array(tensor, data, dtype)
    return arrays


def _dtype(tensor: Tensor, where: str) -> mx.Dtype:
    kind = tensor.storage.kind
    if kind not in DTYPES:
        found = OTHER_DTYPES[kind]
        raise RefusedError(f"holds {found} {where}, expected float32, bfloat16 or float16; re-save it after .float()")
    return DTYPES[kind]


def _check_bounds(tensor: Tensor, where: str) -> None:
    if min(tensor.offset, *tensor.size, *tensor.stride, 0) < 0 or max(tensor.size, default=0) > MAX_SIZE:
        raise RefusedError(f"has a tensor {where} of a size or stride out of range; get the file again")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True))
    if 0 not in tensor.size and last >= tensor.storage.numel:
        raise RefusedError(f"has a tensor {where} that reaches past the end of its storage; get the file again")


def _array(tensor: Tensor, data: bytes, dtype: mx.Dtype) -> mx.array:
    if 0 in tensor.size:
        return mx.zeros(tensor.size, dtype)
    # As unsigned integers, because numpy has no bfloat16 and no bit may change.
    numbers = np.frombuffer(data, f"<u{dtype.size}")[tensor.offset :]
    # The stride of a dimension of size 1 is arbitrary, and may be too large for numpy in bytes.
    strides = [stride * dtype.size * (size > 1) for size, stride in zip(tensor.size, tensor.stride, strict=True)]
    return mx.array(np.lib.stride_tricks.as_strided(numbers, tensor.size, strides, writeable=False)).view(dtype)
