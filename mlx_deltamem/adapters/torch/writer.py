"""Writes the `.pt` file of an adapter as torch.save does, without torch."""

import pickle
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

import mlx.core as mx
import numpy as np

from mlx_deltamem.files.atomic import new_file

# The names torch has for a run of numbers of these types.
STORAGES = {mx.float32: "FloatStorage", mx.bfloat16: "BFloat16Storage", mx.float16: "HalfStorage"}

_SHORT_TUPLES = {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}
_UNSIGNED = {2: mx.uint16, 4: mx.uint32}
_BATCH = 1000  # dictionary items the C pickler writes at a time
_ALIGNMENT = 64  # where torch.save lets each entry start, so that torch.load(mmap=True) can use it in place
_LOCAL_HEADER_BYTES = 30
_EXTRA_HEADER_BYTES = 4


def save_torch(path: Path | str, tensors: Mapping[str, mx.array]) -> None:
    """Write tensors to a `.pt` file that `torch.load(weights_only=True)` reads as a flat dict.

    Each tensor is written contiguous and with a storage of its own. The file is complete or not there at all: what was
    at `path` before stays until the new file is on the disk.

    Args:
        path: The file to write; its folder must exist.
        tensors: float32, bfloat16 or float16 arrays by name, written in this order.

    Raises:
        ValueError: A tensor has another type; nothing was written.
        OSError: The file could not be written; what was at `path` before is unchanged.
    """
    path = Path(path)
    items = list(tensors.items())
    for name, array in items:
        if array.dtype not in STORAGES:
            raise ValueError(
                f"{path}: {name!r} is {array.dtype}, expected float32, bfloat16 or float16; use .astype(mx.float32)"
            )
    with new_file(path) as temporary, temporary.open("wb") as file:
        _write_archive(file, _pickled(items), [array for _, array in items])


def save_none(path: Path | str) -> None:
    """Write what `torch.save(None, path)` writes, for a file that must be there and holds nothing.

    Raises:
        OSError: The file could not be written; what was at `path` before is unchanged.
    """
    with new_file(Path(path)) as temporary, temporary.open("wb") as file:
        _write_archive(file, pickle.PROTO + b"\x02" + pickle.NONE + pickle.STOP, [])


def _write_archive(file: BinaryIO, pickled: bytes, arrays: Sequence[mx.array]) -> None:
    # torch.save also writes `.format_version`, which promises the very gaps its own zip writer leaves between entries.
    with ZipFile(file, "w") as archive:
        _add_entry(archive, file, "data.pkl", pickled)
        _add_entry(archive, file, "byteorder", b"little")
        for index, array in enumerate(arrays):
            _add_entry(archive, file, f"data/{index}", _bits(array))
        _add_entry(archive, file, "version", b"3\n")


def _add_entry(archive: ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    entry = ZipInfo(f"archive/{name}")
    unpadded = file.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + _EXTRA_HEADER_BYTES
    padding = -unpadded % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, data)


def _bits(array: mx.array) -> bytes:
    # As unsigned integers, since numpy has no bfloat16.
    return np.array(array.view(_UNSIGNED[array.dtype.size])).tobytes()


def _pickled(items: Sequence[tuple[str, mx.array]]) -> bytes:
    writer = _PickleWriter()
    writer.emit(pickle.EMPTY_DICT)
    writer.memoize()
    keys = [str(index) for index in range(len(items))]
    entries = [(name, array, key) for (name, array), key in zip(items, keys, strict=True)]
    if len(entries) == 1:
        writer.tensor(*entries[0])
        writer.emit(pickle.SETITEM)
    elif entries:
        # One past the end, since the C pickler closes a full last batch with an empty one.
        for start in range(0, len(entries) + 1, _BATCH):
            writer.emit(pickle.MARK)
            for entry in entries[start : start + _BATCH]:
                writer.tensor(*entry)
            writer.emit(pickle.SETITEMS)
    writer.emit(pickle.STOP)
    return bytes(writer.output)


class _PickleWriter:
    """Emits the opcodes Python's pickler emits for torch.save in protocol 2, each memo entry included."""

    def __init__(self) -> None:
        self.output = bytearray(pickle.PROTO + b"\x02")
        self.memo: dict[int | str, int] = {}
        self.memoized = 0

    def emit(self, data: bytes) -> None:
        self.output += data

    def memoize(self, key: int | str | None = None) -> None:
        """Number what was just emitted, and keep the number where `key` will ask for it again."""
        if key is not None:
            self.memo[key] = self.memoized
        self.emit(_indexed(pickle.BINPUT, pickle.LONG_BINPUT, self.memoized))
        self.memoized += 1

    def recall(self, key: int | str) -> bool:
        """Emit a reference to what was memoized under `key`; False if there is nothing."""
        if key not in self.memo:
            return False
        self.emit(_indexed(pickle.BINGET, pickle.LONG_BINGET, self.memo[key]))
        return True

    def text(self, text: str) -> None:
        # By identity, as pickle does: a tensor named "0" shares its string with the key of the first storage.
        if not self.recall(id(text)):
            encoded = text.encode("utf-8", "surrogatepass")
            self.emit(pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded)
            self.memoize(id(text))

    def name(self, module: str, name: str) -> None:
        line = f"{module}\n{name}\n"
        if not self.recall(line):
            self.emit(pickle.GLOBAL + line.encode())
            self.memoize(line)

    def integer(self, value: int) -> None:
        if value < 1 << 8:
            self.emit(pickle.BININT1 + struct.pack("<B", value))
        elif value < 1 << 16:
            self.emit(pickle.BININT2 + struct.pack("<H", value))
        elif value < 1 << 31:
            self.emit(pickle.BININT + struct.pack("<i", value))
        else:
            digits = pickle.encode_long(value)
            self.emit(pickle.LONG1 + struct.pack("<B", len(digits)) + digits)

    def integers(self, values: Sequence[int]) -> None:
        if not values:
            self.emit(pickle.EMPTY_TUPLE)
            return
        short = _SHORT_TUPLES.get(len(values))
        self.emit(b"" if short else pickle.MARK)
        for value in values:
            self.integer(value)
        self.emit(short or pickle.TUPLE)
        self.memoize()

    def storage(self, kind: str, key: str, numel: int) -> None:
        self.emit(pickle.MARK)
        self.text("storage")
        self.name("torch", kind)
        self.text(key)
        self.text("cpu")
        self.integer(numel)
        self.emit(pickle.TUPLE)
        self.memoize()
        self.emit(pickle.BINPERSID)

    def tensor(self, name: str, array: mx.array, key: str) -> None:
        """Emit a dictionary item: the name, then the call that rebuilds a contiguous tensor on the storage `key`."""
        self.text(name)
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.emit(pickle.MARK)
        self.storage(STORAGES[array.dtype], key, prod(array.shape))
        self.integer(0)
        self.integers(array.shape)
        self.integers(_strides(array.shape))
        self.emit(pickle.NEWFALSE)
        self.name("collections", "OrderedDict")
        self.emit(pickle.EMPTY_TUPLE + pickle.REDUCE)
        self.memoize()
        self.emit(pickle.TUPLE)
        self.memoize()
        self.emit(pickle.REDUCE)
        self.memoize()


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    return short + struct.pack("<B", index) if index < 1 << 8 else long + struct.pack("<I", index)


def _strides(shape: Sequence[int]) -> list[int]:
    # torch counts an empty dimension as one here.
    return list(accumulate((max(size, 1) for size in shape[:0:-1]), mul, initial=1))[::-1] if shape else []
