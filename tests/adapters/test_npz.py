"""The `.npz` reader: every type and layout exactly, and nothing is read before its size is known to be right."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem.adapters.npz import load_npz
from mlx_deltamem.adapters.untrusted import Shapes

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
    with pytest.raises(ValueError, match="has two zip entries of the same name"):
        load_npz(write(tmp_path / "a.npz", ("w.npy", GOOD), ("w.npy", GOOD)))


def test_what_unpacks_without_end_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_deltamem.adapters.npz._COMPRESSED_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10_000, np.float32))
    with pytest.raises(ValueError, match="unpacks to far beyond its own size"):
        load_npz(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty; expected"):
        load_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer that `git lfs pull` replaces"):
        load_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"hello there, all of you")
    with pytest.raises(ValueError, match="is not an npz file, it begins with b'hello th'"):
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


def patched(content: bytes, name: str, at: int, form: str, value: int) -> bytes:
    """Change a field in the list of entries of a zip archive; `at` is its place in the entry (APPNOTE.TXT 4.3.12)."""
    begin = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    changed = bytearray(content)
    struct.pack_into(form, changed, begin + at, value)
    return bytes(changed)


@pytest.mark.slow
def test_an_entry_of_another_size_than_the_archive_says(tmp_path):
    """100 kB that unpack to 100 MB, where the archive says 8 kB: no more than these are unpacked."""
    path, data = tmp_path / "a.npz", npy(described(shape="(2000,)"), bytes(8000))
    write(path, ("w.npy", data + bytes(100_000_000)), compression=zipfile.ZIP_DEFLATED)
    path.write_bytes(patched(path.read_bytes(), "w.npy", 24, "<I", len(data)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"its zip entry w\.npy is truncated or damaged \(Bad CRC"):
        load_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 100, 151, 153, 10_000, 2**32 - 2])
def test_a_wrong_size_is_one_line(size, tmp_path):
    path = write(tmp_path / "a.npz", ("w.npy", GOOD), compression=zipfile.ZIP_DEFLATED)
    path.write_bytes(patched(path.read_bytes(), "w.npy", 24, "<I", size))
    with pytest.raises(ValueError, match=r"a\.npz: ") as error:
        load_npz(path)
    assert len(str(error.value).splitlines()) == 1


def test_an_encrypted_entry_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", ("w.npy", GOOD))
    path.write_bytes(patched(path.read_bytes(), "w.npy", 8, "<H", 1))
    with pytest.raises(ValueError, match=r"has an encrypted zip entry w\.npy"):
        load_npz(path)


def test_a_long_list_of_entries_is_not_read(tmp_path):
    path = write(tmp_path / "a.npz", *((f"{number:0100d}.npy", b"") for number in range(21_000)))
    with pytest.raises(ValueError, match=r"has 21,000 zip entries, expected 20,000 at most"):
        load_npz(path)
    # The end of the archive says how long the list is.
    path.write_bytes(bytes(9 << 20) + path.read_bytes())
    content = bytearray(b"PK" + path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x05\x06") + 12, 9 << 20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has a list of zip entries of 9,437,184 bytes"):
        load_npz(path)


def test_zeros_may_be_compressed_and_a_bomb_may_not(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros((1000, 1000), np.float32))
    assert load_npz(tmp_path / "a.npz")["w"].shape == (1000, 1000)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy(described(shape="(25000000,)"), bytes(100_000_000)))
    with pytest.raises(ValueError, match="unpacks to far beyond its own size"):
        load_npz(tmp_path / "b.npz")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: is a pipe; expected a file"):
        load_npz(tmp_path / "a.npz")
