"""The `.npz` reader: every type and layout exactly, and nothing is read before its size is known to be right."""

import io
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem.adapters.npz import Shapes, load_npz

EXACT = ["<f2", ">f2", "<f4", ">f4"]


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


def described(descr: str = "'<f4'", shape: str = "(2, 3)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def write(path: Path, *entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0, 3)])
def test_arrays_of_numpy(dtype, save, order, shape, tmp_path):
    array = np.array(np.random.default_rng(0).normal(size=shape), dtype, order=order)
    save(tmp_path / "a.npz", w=array)
    found = load_npz(tmp_path / "a.npz")["w"]
    assert (found.shape, found.dtype) == (shape, {2: mx.float16, 4: mx.float32}[array.itemsize])
    assert np.array_equal(np.array(found), array)


@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_float64_is_rounded(dtype, tmp_path):
    array = np.array([0.1, 1e300, -2.0], dtype)
    np.savez(tmp_path / "a.npz", w=array)
    found = load_npz(tmp_path / "a.npz")["w"]
    assert found.dtype == mx.float32
    assert found.tolist() == [np.float32(0.1), np.inf, -2.0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_arrays_of_mlx(dtype, tmp_path):
    arrays = {"a": mx.random.normal((2, 3)).astype(dtype), "b": mx.random.normal((4,)).astype(dtype)}
    mx.savez(str(tmp_path / "a.npz"), **arrays)
    found = load_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    assert all(found[name].dtype == dtype and mx.array_equal(found[name], array) for name, array in arrays.items())


SIX = np.arange(6, dtype="<f4").tobytes()
GOOD = npy(described(), SIX)
REFUSED = {
    "no npy": ([("w.npy", b"hello")], "the header of w is truncated or damaged"),
    "no array": ([("w.npy", GOOD), ("notes.txt", b"hello")], "has an entry notes.txt, which is not an array"),
    "version": ([("w.npy", npy(described(), SIX, b"\x03\x00"))], r"version \(3, 0\) of the npy format"),
    "objects": ([("w.npy", npy(described("'|O'"), b"cos\nsystem\n"))], "holds object in w"),
    "records": ([("w.npy", npy(described("[('a', '<f4')]"), SIX))], "in w, expected float32"),
    "pairs": ([("w.npy", npy(described("('|u1', (2,))", "(3,)"), SIX))], "in w, expected float32"),
    "whole numbers": ([("w.npy", npy(described("'<i4'"), SIX))], "holds int32 in w"),
    "negative": ([("w.npy", npy(described(shape="(-2, -3)"), SIX))], "size out of range"),
    "endless": ([("w.npy", npy(described(shape="(0, 99999999999)")))], "size out of range"),
    "too large": ([("w.npy", npy(described(shape="(2147483647, 2147483647)"), SIX))], "bytes in w, expected"),
    "short": ([("w.npy", npy(described(), SIX[:-1]))], "bytes in w, expected"),
    "long": ([("w.npy", npy(described(), SIX + b"x"))], "bytes in w, expected"),
    "program": ([("w.npy", npy(described(shape="__import__('os')"), SIX))], "the header of w is truncated or damaged"),
    "deep": ([("w.npy", npy(described(shape="(" * 3000 + ")" * 3000), SIX))], "the header of w is truncated"),
    "long header": ([("w.npy", npy(described() + " " * 20000, SIX))], "the header of w is truncated or damaged"),
    "line break": ([("a\nb.npy", b"")], r"the header of a\\nb is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_something_else_are_refused(case, tmp_path):
    entries, expected = REFUSED[case]
    with pytest.raises(ValueError, match=expected) as caught:
        load_npz(write(tmp_path / "a.npz", *entries))
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(compression, tmp_path):
    with pytest.raises(ValueError, match="is compressed in an unknown way"):
        load_npz(write(tmp_path / "a.npz", ("w.npy", GOOD), compression=compression))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_a_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has two arrays of the same name"):
        load_npz(write(tmp_path / "a.npz", ("w.npy", GOOD), ("w.npy", GOOD)))


def test_what_unpacks_without_end_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_deltamem.adapters.npz._COMPRESSED_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10_000, np.float32))
    with pytest.raises(ValueError, match="unpacks to far beyond its own size"):
        load_npz(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="is not an npz file, it begins with b''"):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="Is a directory"):
        load_npz(tmp_path)


def test_a_damaged_number_is_found(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, w=np.arange(6, dtype=np.float32))
    content = bytearray(stream.getvalue())
    content[content.index(SIX) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"is truncated or damaged \(Bad CRC"):
        load_npz(tmp_path / "a.npz")


def test_shapes_are_checked_before_numbers_are_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3)), b=np.zeros(4))

    def check(shapes: Shapes) -> None:
        assert shapes == {"a": (2, 3), "b": (4,)}
        raise ValueError("no")

    monkeypatch.setattr("mlx_deltamem.adapters.npz._array", None)
    with pytest.raises(ValueError, match=r"^no$"):
        load_npz(tmp_path / "a.npz", check)
