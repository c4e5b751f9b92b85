"""Read `.npz` files of float arrays: each header is checked before memory is allocated, and nothing is unpickled.

An `.npz` file is a zip archive with one `.npy` file for each array. MLX writes bfloat16 as `V2` (two untyped bytes),
because numpy has no such type.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import mlx.core as mx
import numpy as np

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

_POINTER = b"version https://git-lfs"
_ENDING = ".npy"
_EXPECTED = "expected an npz file of float arrays, as mx.savez writes it"
_BFLOAT16 = np.dtype("V2")
# The type that each type is read as. mlx has no float64 on a GPU.
_READ_AS: dict[np.dtype[np.generic], np.dtype[np.generic]] = {
    np.dtype("f2"): np.dtype("f2"),
    np.dtype("f4"): np.dtype("f4"),
    np.dtype("f8"): np.dtype("f4"),
    _BFLOAT16: np.dtype("<u2"),
}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_DIMENSIONS = 8
# numpy writes 128 bytes, and 192 for long shapes.
_MOST_HEADER_BYTES = 4096
# Compressed arrays may hold this much more than the file; it limits the memory that a hostile file can take. MLX does
# not compress. Where numpy does, only arrays of zeros become much smaller, such as those of a new adapter.
_COMPRESSED_BYTES = 64 << 20


def load_npz(path: Path | str, check: Callable[[Shapes], object] | None = None) -> dict[str, mx.array]:
    """Read the arrays of an `.npz` file, in either byte order.

    Args:
        path: A file of float16, bfloat16 (as MLX writes it), float32 or float64 arrays.
        check: Called with the shapes by name before any number is read; it raises ValueError to refuse the file.

    Returns:
        The arrays by name, in the order of the file, with their own types; float64 is rounded to float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or has other contents; nothing in it was executed.
    """
    try:
        with open_file(Path(path)) as file:
            archive, entries = _opened(file)
            headers = {name: _header(archive, entry, shown(name)) for name, entry in entries.items()}
            if check is not None:
                check({name: header.shape for name, header in headers.items()})
            return {name: _array(archive, header, shown(name)) for name, header in headers.items()}
    except FileNotFoundError:
        raise
    except (OSError, RefusedError) as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _Header:
    """The header of one array; the numbers begin at byte `begin` of the zip entry."""

    entry: ZipInfo
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    begin: int


def _opened(file: BinaryIO) -> tuple[ZipFile, dict[str, ZipInfo]]:
    """Return the archive and its entries by the names of the arrays."""
    start, size = file.read(len(_POINTER)), file.seek(0, os.SEEK_END)
    if not size:
        raise RefusedError(f"is empty; {_EXPECTED}")
    if start == _POINTER:
        raise RefusedError(f"is a Git LFS pointer that `git lfs pull` replaces with the file; {_EXPECTED}")
    if not start.startswith(b"PK"):
        raise RefusedError(f"is not an npz file, it begins with {start[:8]!r}; {_EXPECTED}")
    archive = opened_zip(file)
    entries = archive.infolist()
    for entry in entries:
        if not entry.filename.endswith(_ENDING):
            raise RefusedError(f"has an entry {shown(entry.filename)}, which is not an array; {_EXPECTED}")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise RefusedError(f"is compressed in an unknown way ({entry.compress_type}); save it with mx.savez")
    found = {entry.filename.removesuffix(_ENDING): entry for entry in entries}
    if sum(entry.file_size for entry in entries) > size + _COMPRESSED_BYTES:
        raise RefusedError("unpacks to far beyond its own size; save it with mx.savez, which does not compress")
    return archive, found


def _header(archive: ZipFile, entry: ZipInfo, name: str) -> _Header:
    with damage_in(f"the header of {name}"), archive.open(entry) as packed:
        file = io.BytesIO(packed.read(_MOST_HEADER_BYTES))
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise RefusedError(f"has {name} in version {version} of the npy format, expected 1.0 or 2.0")
        shape, is_fortran, dtype = _HEADERS[version](file)
        begin = file.tell()
    if dtype.newbyteorder("=") not in _READ_AS:
        raise RefusedError(f"holds {shown(str(dtype))} in {name}, expected float32, bfloat16 or float16")
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= size <= MAX_SIZE for size in shape):
        raise RefusedError(f"has an array {name} of a size out of range; get the file again")
    expected = begin + prod(shape) * dtype.itemsize
    if entry.file_size != expected:
        raise RefusedError(f"has {entry.file_size} bytes in {name}, expected {expected}; get the file again")
    return _Header(entry, shape, "F" if is_fortran else "C", dtype, begin)


def _array(archive: ZipFile, header: _Header, name: str) -> mx.array:
    data = read_entry(archive, header.entry.filename)
    with damage_in(f"its array {name}"):
        numbers = np.frombuffer(data, header.dtype, prod(header.shape), header.begin)
        is_bfloat16 = header.dtype == _BFLOAT16
        native = _READ_AS[header.dtype.newbyteorder("=")]
        # Numbers beyond the range of float32 become infinite, without numpy's warning.
        with np.errstate(over="ignore"):
            numbers = numbers.view(native) if is_bfloat16 else numbers.astype(native)
        array = mx.array(np.array(numbers.reshape(header.shape, order=header.order), order="C"))
        return array.view(mx.bfloat16) if is_bfloat16 else array
