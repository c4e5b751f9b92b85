"""Write the `.pt` file of an adapter, with the bytes of `torch.save` and without torch."""

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile, ZipInfo

import mlx.core as mx
import numpy as np

from mlx_deltamem.files.atomic import new_file

# torch's names for storages (flat arrays) of these types.
STORAGES = {mx.float32: "FloatStorage", mx.bfloat16: "BFloat16Storage", mx.float16: "HalfStorage"}

_UNSIGNED = {2: mx.uint16, 4: mx.uint32}
_BATCH = 1000  # the number of dictionary items that the C pickler writes with one opcode
_ALIGNMENT = 64  # torch.save aligns each entry to this many bytes, so that torch.load(mmap=True) can use it in place
_LOCAL_HEADER_BYTES = 30
_EXTRA_HEADER_BYTES = 4


def save_torch(path: Path | str, tensors: Mapping[str, mx.array]) -> None:
    """Write tensors to a `.pt` file that `torch.load(weights_only=True)` reads as a flat dict.

    Each tensor is written contiguous, with its own storage. The write is atomic: an earlier file at `path` stays until
    the new one is complete on the disk.

    Args:
        path: The file to write; its folder must exist.
        tensors: float32, bfloat16 or float16 arrays by name, written in this order.

    Raises:
        ValueError: A tensor has another type; nothing was written.
        OSError: The file could not be written; an earlier file at `path` is unchanged.
    """
    path = Path(path)
    for name, array in tensors.items():
        if array.dtype not in STORAGES:
            raise ValueError(
                f"{path}: {name!r} is {array.dtype}, expected float32, bfloat16 or float16; use .astype(mx.float32)"
            )
    content = {name: _Tensor(str(index), array) for index, (name, array) in enumerate(tensors.items())}
    _write_archive(path, content, list(tensors.values()))


def save_none(path: Path | str) -> None:
    """Write the bytes of `torch.save(None, path)`, for a file that must exist and has no contents.

    Raises:
        OSError: The file could not be written; an earlier file at `path` is unchanged.
    """
    _write_archive(Path(path), None, [])


def _write_archive(path: Path, content: object, arrays: Sequence[mx.array]) -> None:
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(content)
    # torch.save also writes `.format_version`. It promises the gaps that torch's own zip writer leaves between entries.
    with new_file(path) as temporary, ZipFile(temporary, "w") as archive:
        _add_entry(archive, "data.pkl", pickled.getvalue())
        _add_entry(archive, "byteorder", b"little")
        for index, array in enumerate(arrays):
            # As unsigned integers, because numpy has no bfloat16.
            _add_entry(archive, f"data/{index}", np.array(array.view(_UNSIGNED[array.dtype.size])).tobytes())
        _add_entry(archive, "version", b"3\n")


def _add_entry(archive: ZipFile, name: str, data: bytes) -> None:
    entry = ZipInfo(f"archive/{name}")
    assert archive.fp is not None  # it is open
    unpadded = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + _EXTRA_HEADER_BYTES
    padding = -unpadded % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, data)


def _stand_in(module: str, name: str) -> type:
    """Return a class that `_Pickler` writes as a reference to `module.name`."""
    return type(name, (), {"__module__": module})


_REBUILD = _stand_in("torch._utils", "_rebuild_tensor_v2")
_STORAGE_CLASSES = {dtype: _stand_in("torch", name) for dtype, name in STORAGES.items()}


@dataclass(frozen=True)
class _Storage:
    """The numbers of an array in the zip entry `data/KEY`."""

    key: str
    array: mx.array


@dataclass(frozen=True)
class _Tensor:
    """An array that is pickled as torch pickles a contiguous tensor on the storage `key`."""

    key: str
    array: mx.array

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        shape = self.array.shape
        # torch counts an empty dimension as one here.
        strides = tuple(accumulate((max(size, 1) for size in shape[:0:-1]), mul, initial=1))[::-1] if shape else ()
        return _REBUILD, (_Storage(self.key, self.array), 0, shape, strides, False, OrderedDict())


# The types of all objects in these files, with the names that Python's pickler has for them.
_PICKLED = {
    type(None): "none",
    bool: "bool",
    int: "long",
    str: "str",
    tuple: "tuple",
    dict: "dict",
    type: "type",
}


class _Pickler(pickle._Pickler):
    """Python's pickler, which writes references to torch without an import, and dictionaries as the C pickler does.

    `torch.save` uses the C pickler, in which neither can be changed. The attributes below are `pickle._Pickler`'s.
    """

    write: Callable[[bytes], object]
    save: Callable[[object], None]
    memoize: Callable[[object], None]
    # A table of its own: the package dill, which comes with `datasets`, changes Python's table when it is imported. The
    # methods have no types.
    dispatch: ClassVar[dict[type, Callable[..., None]]] = {
        kind: getattr(pickle._Pickler, f"save_{name}") for kind, name in _PICKLED.items()
    }

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        """Describe a storage as torch does; None for other objects."""
        if not isinstance(obj, _Storage):
            return None
        return "storage", _STORAGE_CLASSES[obj.array.dtype], obj.key, "cpu", obj.array.size

    def save_global(self, obj: type, name: str | None = None) -> None:
        """Write a reference to a class, which Python's own method would import to check it."""
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    def _batch_setitems(self, items: Iterable[tuple[object, object]], *_: object) -> None:
        items = list(items)
        if len(items) <= 1:
            self._save_items(items, end=pickle.SETITEM)
            return
        # One batch past the end, because the C pickler writes an empty batch after a full last one.
        for start in range(0, len(items) + 1, _BATCH):
            self.write(pickle.MARK)
            self._save_items(items[start : start + _BATCH])
            self.write(pickle.SETITEMS)

    def _save_items(self, items: Sequence[tuple[object, object]], end: bytes = b"") -> None:
        for key, value in items:
            self.save(key)
            self.save(value)
            self.write(end)
