"""The `.pt` reader and writer: bit-exact, the same bytes as torch.save, and nothing in a hostile file can run."""

import copyreg
import io
import os
import pickle
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.adapters.torch.writer import save_none, save_torch
from mlx_deltamem.adapters.untrusted import Shapes

REPO = Path(__file__).parents[2]
GOLDENS = sorted((REPO / "tests" / "goldens" / "adapters").glob("*/delta_mem_adapter.pt"))

UNSIGNED = {2: np.uint16, 4: np.uint32}
KINDS = {mx.float32: "FloatStorage", mx.bfloat16: "BFloat16Storage", mx.float16: "HalfStorage"}
DTYPES = st.sampled_from(list(KINDS))


# A hand-made pickle is a concatenation of the pieces below, between `START` and the opcode STOP.
START = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def constant(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(key: str = "0", numel: int = 6, kind: str = "FloatStorage") -> bytes:
    place = constant(key) + constant("cpu") + constant(numel)
    return b"(" + constant("storage") + f"ctorch\n{kind}\n".encode() + place + b"tQ"


def tensor(size=(2, 3), stride=(3, 1), offset=0, of: bytes | None = None, more: bytes = b"") -> bytes:
    view = constant(offset) + constant(size) + constant(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (of or storage()) + view + b"\x89" + ORDERED_DICT + more + b"tR"


def dictionary(**values: bytes) -> bytes:
    return b"}(" + b"".join(constant(name) + value for name, value in values.items()) + b"u"


def program(body: bytes) -> bytes:
    return START + body + b"."


SIX = np.arange(6, dtype=np.float32)


def write_zip(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about entries of the same name, which are wanted
        for name, data in entries:
            archive.writestr(name, data)
    return path


def write(path: Path, pickled: bytes, data: bytes = SIX.tobytes(), folder: str = "archive") -> Path:
    return write_zip(path, [(f"{folder}/data.pkl", pickled), (f"{folder}/data/0", data)])


def entries_of(file: Path | io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def bits(array: mx.array) -> np.ndarray:
    return np.array(array.view({2: mx.uint16, 4: mx.uint32}[array.dtype.size]))


def refusal(path: Path) -> str:
    """The message `load` refuses the file with; anything but one line of a ValueError with the path fails the test."""
    with pytest.raises(ValueError) as caught:
        load_torch(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 400
    return message


def load_or_refuse(path: Path) -> dict[str, mx.array] | None:
    try:
        return load_torch(path)
    except ValueError:
        refusal(path)
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of hypothesis."""
    return tmp_path_factory.mktemp("torch_file")


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.parent.name)
def test_a_file_of_torch_is_written_as_torch_wrote_it(golden: Path, tmp_path: Path):
    tensors = load_torch(golden)
    save_torch(tmp_path / "mine.pt", tensors)
    theirs, mine = entries_of(golden), entries_of(tmp_path / "mine.pt")
    assert tensors
    assert mine["data.pkl"] == theirs["data.pkl"]
    assert mine == {name: theirs[name] for name in mine}
    assert {name for name in theirs if name.startswith("data/")} <= mine.keys()


@st.composite
def arrays(draw: st.DrawFn) -> mx.array:
    dtype = draw(DTYPES)
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    raw = draw(st.binary(min_size=prod(shape) * dtype.size, max_size=prod(shape) * dtype.size))
    return mx.array(np.frombuffer(raw, UNSIGNED[dtype.size]).reshape(shape)).view(dtype)


@settings(max_examples=60)
@given(st.dictionaries(st.text(st.characters(), max_size=20), arrays(), max_size=5))
def test_round_trip_keeps_every_bit(folder: Path, tensors: dict[str, mx.array]):
    save_torch(folder / "a.pt", tensors)
    back = load_torch(folder / "a.pt")
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(bits(back[name]), bits(array))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_all_numbers_of_16_bits_survive(tmp_path: Path, dtype: mx.Dtype):
    every = np.arange(1 << 16, dtype=np.uint16)
    save_torch(tmp_path / "a.pt", {"w": mx.array(every).view(dtype)})
    np.testing.assert_array_equal(bits(load_torch(tmp_path / "a.pt")["w"]), every)


def test_a_view_is_written_contiguous(tmp_path: Path):
    matrix = mx.arange(12).astype(mx.bfloat16).reshape(3, 4)
    views = {"t": matrix.T, "r": matrix[::-1, 1::2], "b": mx.broadcast_to(matrix[:1], (3, 4))}
    save_torch(tmp_path / "a.pt", views)
    back = load_torch(tmp_path / "a.pt")
    assert all(mx.array_equal(back[name], view) for name, view in views.items())


def test_a_package_that_changes_pickle_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As dill does when it is imported."""
    save_torch(tmp_path / "a.pt", {"w": mx.ones((2, 3))})
    save_none(tmp_path / "none.pt")
    for kind in (dict, type, int, str, tuple, type(None)):
        monkeypatch.setitem(pickle._Pickler.dispatch, kind, lambda pickler, obj: pickler.save_bool(True))
    save_torch(tmp_path / "b.pt", {"w": mx.ones((2, 3))})
    save_none(tmp_path / "none2.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "none.pt").read_bytes() == (tmp_path / "none2.pt").read_bytes()


@st.composite
def views(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """Size, stride, offset and storage length of a tensor that lies in its storage."""
    size = draw(st.lists(st.integers(0, 4), max_size=4))
    stride = [draw(st.integers(0, 9)) if n != 1 else draw(st.integers(0, 2**63)) for n in size]
    offset = draw(st.integers(0, 5))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True) if n)
    return size, stride, offset, max(last, 0) + 1 + draw(st.integers(0, 3))


@settings(max_examples=100)
@given(views(), DTYPES)
def test_strided_views(folder: Path, view: tuple[list[int], list[int], int, int], dtype: mx.Dtype):
    size, stride, offset, numel = view
    numbers = np.frombuffer(np.random.default_rng(numel).bytes(numel * dtype.size), UNSIGNED[dtype.size])
    pickled = tensor(tuple(size), tuple(stride), offset, storage(numel=numel, kind=KINDS[dtype]))
    loaded = load_torch(write(folder / "v.pt", program(dictionary(w=pickled)), numbers.tobytes()))["w"]
    steps = [s * dtype.size * (n > 1) for n, s in zip(size, stride, strict=True)]
    expected = np.lib.stride_tricks.as_strided(numbers[offset:], size, steps)
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(bits(loaded), expected)


PARAMETER = b"ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x88" + ORDERED_DICT + b"\x87R"
METADATA = dictionary(_metadata=ORDERED_DICT)
SHORT_TEXT = {text: b"\x8c" + bytes([len(text)]) + text.encode() for text in ("torch", "FloatStorage", "w")}


@pytest.mark.parametrize(
    "body",
    [
        dictionary(w=tensor()),
        b"}" + constant("w") + tensor() + b"s",
        ORDERED_DICT + b"(" + constant("w") + tensor() + b"u",
        ORDERED_DICT + constant("w") + tensor() + b"s" + METADATA + b"b",
        dictionary(w=PARAMETER),
        dictionary(w=tensor(more=b"}")),
        b"\x95" + struct.pack("<Q", 9) + b"}" + SHORT_TEXT["w"] + b"\x94" + tensor() + b"s",
        dictionary(w=tensor()).replace(
            b"ctorch\nFloatStorage\n", SHORT_TEXT["torch"] + SHORT_TEXT["FloatStorage"] + b"\x93"
        ),
        dictionary(w=tensor()).replace(constant(6), b"\x8a\x01\x06"),
    ],
)
def test_the_forms_that_torch_writes(tmp_path: Path, body: bytes):
    loaded = load_torch(write(tmp_path / "a.pt", program(body)))
    np.testing.assert_array_equal(loaded["w"], SIX.reshape(2, 3))


def test_tensors_that_share_a_storage(tmp_path: Path):
    shared = dictionary(a=tensor(), b=tensor((3, 2), (1, 3)), c=tensor((), (), 5), d=tensor((4,), (0,), 2))
    loaded = load_torch(write(tmp_path / "a.pt", program(shared), folder=".."))
    assert [loaded[name].tolist() for name in "bcd"] == [[[0, 3], [1, 4], [2, 5]], 5, [2, 2, 2, 2]]


def test_an_empty_dict(tmp_path: Path):
    save_torch(tmp_path / "a.pt", {})
    assert load_torch(tmp_path / "a.pt") == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (dictionary(state_dict=dictionary(w=tensor())), "holds something of type dict under 'state_dict'"),
        (dictionary(w=tensor(), epoch=constant(3)), "holds something of type int under 'epoch'"),
        (dictionary(lr=constant(0.5)), "holds something of type float under 'lr'"),
        (dictionary(names=constant(["a", "b"])), "holds something of type list under 'names'"),
        (dictionary(name=constant("x\ny")), "holds something of type str under 'name'"),
        (dictionary(**{"a\nb": constant(None)}), r"holds something of type NoneType under 'a\nb'"),
        (dictionary(w=storage()), "holds something of type Storage under 'w'"),
        (tensor(), "holds something of type Tensor"),
        (constant([]), "holds something of type list"),
        (b"}" + constant(3) + tensor() + b"s", "something of type int as a key"),
        (b"}" + constant(()) + tensor() + b"s", "something of type tuple as a key"),
        (dictionary(w=tensor(of=storage(kind="DoubleStorage"))), "holds float64 under 'w'"),
        (dictionary(w=tensor(of=storage(kind="LongStorage"))), "holds int64 under 'w'"),
        (dictionary(w=tensor(more=dictionary(neg=b"\x88"))), "negated or conjugated view"),
        (dictionary(w=tensor((7,), (1,))), "'w' that reaches past the end"),
        (dictionary(w=tensor((2,), (1,), 5)), "'w' that reaches past the end"),
        (dictionary(w=tensor((2, 2), (4, 2))), "'w' that reaches past the end"),
        (dictionary(w=tensor((2,), (2**64,))), "'w' that reaches past the end"),
        (dictionary(w=tensor((-2,), (1,))), "out of range"),
        (dictionary(w=tensor((2,), (-1,), 3)), "out of range"),
        (dictionary(w=tensor((2,), (1,), -1)), "out of range"),
        (dictionary(w=tensor((0, 2**31), (1, 1))), "out of range"),
        (dictionary(w=tensor((2,), (1, 1))), "unknown arguments"),
        (dictionary(w=tensor((2.0,), (1,))), "unknown arguments"),
        (dictionary(w=tensor((1,) * 33, (1,) * 33)), "unknown arguments"),
        (dictionary(w=tensor((10**12,), (0,))), "out of range"),
        (dictionary(w=tensor((10**9,), (0,))), "repeats its numbers under 'w'"),
        (dictionary(w=tensor((10**6,) * 30, (0,) * 30)), "repeats its numbers under 'w'"),
        (dictionary(w=tensor(of=storage(numel=5), size=(5,), stride=(1,))), "has 24 bytes under 'w', expected 20"),
        (dictionary(w=tensor(of=storage(numel=2**60))), "has 24 bytes under 'w', expected 4611686018427387904"),
        (dictionary(w=tensor(of=storage(key="1"))), "lacks the zip entry data/1"),
        (dictionary(w=tensor(of=storage(key="../x"))), "lacks the zip entry data/../x"),
    ],
)
def test_other_contents_are_refused_by_name(tmp_path: Path, body: bytes, found: str):
    assert found in refusal(write(tmp_path / "a.pt", program(body)))


MKDIR = b"cos\nmkdir\n"
# Each makes a folder when Python's own pickle loads it; `%s` stands for the opcode that pushes the name of the folder.
HOSTILE = {
    "REDUCE": MKDIR + b"%s\x85R",
    "STACK_GLOBAL": constant("os") + constant("mkdir") + b"\x93%s\x85R",
    "INST": b"(%sios\nmkdir\n",
    "OBJ": b"(" + MKDIR + b"%so",
    "EXT1": b"\x82\xf0%s\x85R",
    "EXT2": b"\x83\xf0\x00%s\x85R",
    "EXT4": b"\x84\xf0\x00\x00\x00%s\x85R",
    "BUILD": b"ctypes\nSimpleNamespace\n)R}" + constant("__setstate__") + MKDIR + b"sb%sb",
    "getattr": b"cbuiltins\ngetattr\ncos\npath\n" + constant("os") + b"\x86R0" + MKDIR + b"%s\x85R",
    "key": b"}" + MKDIR + b"%s\x85R" + constant(1) + b"s",
    "value": b"}" + constant("w") + MKDIR + b"%s\x85Rs",
    "discarded": MKDIR + b"%s\x85R0}",
    "after a list": b"](" + constant(1) + b"e0" + MKDIR + b"%s\x85R",
}


@pytest.fixture
def extension_code():
    copyreg.add_extension("os", "mkdir", 240)
    yield
    copyreg.remove_extension("os", "mkdir", 240)


@pytest.mark.usefixtures("extension_code")
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_executed(tmp_path: Path, name: str):
    made = tmp_path / "made"
    hostile = program(HOSTILE[name].replace(b"%s", constant(str(made))))
    pickle.loads(hostile)
    made.rmdir()  # fails unless the pickle above did run
    refusal(write(tmp_path / "a.pt", hostile))
    assert not made.exists()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"cposix\nsystem\n", "wants to run posix.system; only tensors are read, nothing was executed"),
        (b"ctorch\nload\n", "wants to run torch.load"),
        (b"ctorch.storage\n_load_from_bytes\n", "wants to run torch.storage._load_from_bytes"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
            "wants to run torch._utils._rebuild_tensor_v2.__globals__",
        ),
        (b"ctorch._utils\n_rebuild_tensor_v3\n", "wants to run torch._utils._rebuild_tensor_v3"),
        (b"c__main__\n" + b"x" * 10**6 + b"\n", "wants to run __main__.xxx"),
        (constant("o\ns") + constant("system") + b"\x93", r"wants to run o\ns.system"),
        (constant(1) + constant("system") + b"\x93", "something of type int for the name of a module"),
        (b"(iposix\nsystem\n", "uses the pickle opcode INST posix system"),
        (b"Pposix system\n", "uses the pickle opcode PERSID posix system"),
        (b"ctorch\nFloatStorage\n)\x81", "uses the pickle opcode NEWOBJ"),
        (b"\x97", "uses the pickle opcode NEXT_BUFFER"),
        (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage with unknown arguments"),
        (constant("mkdir") + b")R", "wants to call something of type str"),
        (tensor() + dictionary(x=constant(1)) + b"b", "wants to set the state of something of type Tensor"),
        (b"ccollections\nOrderedDict\n" + constant(([("a", 1)],)) + b"R", "unknown arguments"),
        (constant(("storage", 1, "0", "cpu", 6)) + b"Q", "describes a storage in an unknown form"),
        (constant("0") + b"Q", "describes a storage in an unknown form"),
    ],
)
def test_what_a_pickle_wants_is_named(tmp_path: Path, body: bytes, found: str):
    assert found in refusal(write(tmp_path / "a.pt", program(body)))


DOUBLED = b")" + b"q\x00h\x00\x86" * 60
LARGE = {
    "memo index": b"Nr\xff\xff\xff\xff",
    "text length": b"\x8d" + struct.pack("<Q", 1 << 60),
    "frame length": b"N\x95" + struct.pack("<Q", 1 << 60),
    "integer length": b"\x8b" + struct.pack("<i", 1 << 30),
    "marks": b"(" * 10**5,
    "tuples in tuples": b")" + b"\x85" * 10**5,
    "tuples in tuples as a name": b")" + b"\x85" * 10**5 + constant("x") + b"\x93",
    "doubled tuples as a name": DOUBLED + constant("x") + b"\x93",
    "doubled tuples as a storage": DOUBLED + b"Q",
    "doubled tuples as a size": dictionary(w=tensor()).replace(constant((2, 3)), DOUBLED),
    "doubled tuples as a value": dictionary(w=DOUBLED),
    "a dictionary in itself": b"}q\x00" + constant("x") + b"h\x00s",
    "one tensor many times": b"}(" + b"".join(constant(f"{i}") + tensor((10**7,), (0,)) for i in range(99)) + b"u",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_small_file_cannot_take_much_memory_or_time(tmp_path: Path, name: str):
    refusal(write(tmp_path / "a.pt", program(LARGE[name])))


PLAIN = program(dictionary(w=tensor()))
VALID = [("archive/data.pkl", PLAIN), ("archive/data/0", SIX.tobytes())]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "is a torch file in the format from before"),
        (PLAIN, "is a plain pickle"),
        (struct.pack("<Q", 20) + b'{"__metadata__":{}}   ', "is a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"<html>\n", r"is not a zip archive, it begins with b'<html>\n'"),
        (b"PK\x03\x04", "the zip archive is truncated or damaged"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, content: bytes, found: str):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert found in refusal(path)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([("word/document.xml", b"")], "is a zip archive with 0 FOLDER/data.pkl entries"),
        ([*VALID, ("other/data.pkl", PLAIN)], "is a zip archive with 2 FOLDER/data.pkl entries"),
        ([*VALID, ("archive/constants.pkl", b""), ("archive/code/x.py", b"")], "is a TorchScript program"),
        ([*VALID, VALID[1]], "has two zip entries of the same name"),
        ([VALID[0]], "lacks the zip entry data/0"),
        ([VALID[0], ("archive/data/0", b"1234")], "has 4 bytes under 'w', expected 24"),
        ([*VALID, ("archive/byteorder", b"big")], "is not little-endian"),
        ([("archive/data.pkl", b"N0" * (4 << 20))], "has 8388608 bytes in data.pkl, expected at most 4194304"),
        ([("archive/data.pkl", b"")], "its data.pkl is truncated or damaged"),
        ([("archive/data.pkl", START + b".")], "its data.pkl is truncated or damaged"),
    ],
)
def test_other_archives_are_told_apart(tmp_path: Path, entries: list[tuple[str, bytes]], found: str):
    assert found in refusal(write_zip(tmp_path / "a.pt", entries))


def test_byte_order_may_be_stated(tmp_path: Path):
    assert load_torch(write_zip(tmp_path / "a.pt", [*VALID, ("archive/byteorder", b"little")]))


def test_a_compressed_archive_is_refused(tmp_path: Path):
    bomb = [VALID[0], ("archive/data/0", bytes(10**6))]
    assert "has a compressed zip entry" in refusal(write_zip(tmp_path / "a.pt", bomb, zipfile.ZIP_DEFLATED))


def test_entries_that_overlap_are_refused(tmp_path: Path):
    path = write_zip(tmp_path / "a.pt", [*VALID, ("archive/data/1", bytes(100))])
    size = struct.pack("<LL", 100, 100)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<LL", 10**9, 10**9)))
    assert "has zip entries larger than the file" in refusal(path)


def test_a_missing_file_is_not_found(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        load_torch(tmp_path / "a.pt")


def test_a_folder_is_refused(tmp_path: Path):
    refusal(tmp_path)


@pytest.fixture(scope="module")
def small_file(folder: Path) -> bytes:
    save_torch(folder / "small.pt", {"w": mx.arange(3).astype(mx.bfloat16), "b": mx.array(1.0)})
    return (folder / "small.pt").read_bytes()


@pytest.mark.slow
def test_every_truncation_is_refused(folder: Path, small_file: bytes):
    path = folder / "cut.pt"
    for length in range(len(small_file)):
        path.write_bytes(small_file[:length])
        refusal(path)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_changed_bytes_are_refused_or_harmless(folder: Path, small_file: bytes, data: st.DataObject):
    changed = bytearray(small_file)
    for position, value in data.draw(
        st.dictionaries(st.integers(0, len(changed) - 1), st.integers(0, 255), max_size=3)
    ).items():
        changed[position] = value
    path = folder / "changed.pt"
    path.write_bytes(changed)
    loaded = load_or_refuse(path)
    if loaded is not None:
        assert [array.tolist() for array in loaded.values()] == [[0, 1, 2], 1]


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_changed_pickles_are_refused_or_read(folder: Path, data: st.DataObject):
    """In a zip entry of the right checksum, so that the interpreter gets to see the change."""
    changed = bytearray(PLAIN)
    for position in data.draw(st.sets(st.integers(0, len(PLAIN) - 1), min_size=1, max_size=3)):
        changed[position] = data.draw(st.integers(0, 255))
    load_or_refuse(write(folder / "pickle.pt", bytes(changed)))


PIECES = [
    *(bytes([code]) for code in b"().0}]NabdeoQRstu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"),
    *(constant(value) for value in ("w", "storage", "torch", 0, 3, 2**40, -1, 0.5, (2, 3), (1,))),
    *(b"q\x00", b"h\x00", b"r\x01\x00\x00\x00", b"j\x01\x00\x00\x00", b"\x82\xf0", b"\x8a\xff", b"ios\nmkdir\n"),
    *(b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(storage(), tensor(), ORDERED_DICT, PARAMETER, dictionary(w=tensor())),
]


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_any_pieces_are_refused_or_read(folder: Path, pieces: list[bytes]):
    load_or_refuse(write(folder / "pieces.pt", program(b"".join(pieces))))


def test_other_types_are_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a\.pt: 'w' is mlx\.core\.int32, expected float32, bfloat16 or float16"):
        save_torch(tmp_path / "a.pt", {"v": mx.array(1.0), "w": mx.array([1])})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_torch(tmp_path / "a.pt", {"w": mx.array(1.0)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_torch(tmp_path / "a.pt", {"w": mx.array(2.0)})
    assert load_torch(tmp_path / "a.pt")["w"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_storages_are_aligned(tmp_path: Path):
    save_torch(tmp_path / "a.pt", {"w": mx.arange(3.0), "b": mx.arange(50.0)})
    content = (tmp_path / "a.pt").read_bytes()
    assert content.index(bits(mx.arange(3.0)).tobytes()) % 64 == 0
    assert content.index(bits(mx.arange(50.0)).tobytes()) % 64 == 0


TORCH_SHAPES = [
    {},
    {"one": ()},
    {"empty": (0, 3), "inner": (2, 0, 3), "scalar": (), "vector": (5,), "matrix": (2, 3), "cube": (2, 3, 4)},
    {"four": (1, 2, 3, 4), "eight": (1,) * 8, "long": (300,), "longer": (70_000,), "storage": (1,), "cpu": (1,)},
    {"0": (1,), "10": (1,), "ä\n\ud800": (2, 2), "": (1,)},
    *({f"w.{index}": (2,) for index in range(count)} for count in (999, 1000, 1001, 2001)),
]


@pytest.mark.parametrize("shapes", TORCH_SHAPES, ids=len)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_reads_and_writes_the_same(tmp_path: Path, shapes: dict[str, tuple[int, ...]], dtype: str):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    tensors = {name: mx.random.normal(shape).astype(getattr(mx, dtype)) for name, shape in shapes.items()}
    save_torch(path, tensors)
    for mapped in (False, True):
        theirs = torch.load(path, weights_only=True, mmap=mapped)
        assert list(theirs) == list(tensors)
        assert all(str(value.dtype) == f"torch.{dtype}" for value in theirs.values())
        assert all(value.float().tolist() == tensors[name].tolist() for name, value in theirs.items())
    resaved = io.BytesIO()
    torch.save({name: theirs[name].clone() for name in shapes}, resaved)
    mine, theirs = entries_of(path), entries_of(resaved)
    assert mine == {name: theirs[name] for name in mine}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_layouts_of_torch(tmp_path: Path, protocol: int, dtype: str):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    base = torch.randn(6, 8).to(getattr(torch, dtype))
    layouts = OrderedDict(
        base=base,
        transposed=base.t(),
        sliced=base[1::2, 3:],
        column=base[:, 2],
        expanded=base[0].expand(4, 8),
        permuted=base.reshape(2, 3, 8).permute(2, 0, 1),
        empty=base[6:],
        scalar=base[2, 3],
        parameter=torch.nn.Parameter(base.clone()),
        parameter_view=torch.nn.Parameter(base.t()),
        trained=base.clone().requires_grad_(),
        channels_last=torch.randn(2, 3, 4, 5).to(base.dtype).to(memory_format=torch.channels_last),
    )
    for content in (layouts, dict(layouts), dict(list(layouts.items())[:1])):
        torch.save(content, path, pickle_protocol=protocol)
        loaded = load_torch(path)
        assert list(loaded) == list(content)
        for name, value in content.items():
            assert loaded[name].dtype == getattr(mx, dtype)
            assert loaded[name].tolist() == value.float().tolist()
            assert loaded[name].shape == tuple(value.shape)


def test_other_files_of_torch(tmp_path: Path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    torch.save(module.state_dict(), path)
    assert list(load_torch(path)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    assert "is a torch file in the format from before torch 1.6" in refusal(path)
    torch.save(module, path)
    assert "wants to run torch.nn.modules.container.Sequential" in refusal(path)
    torch.jit.save(torch.jit.script(module), path)
    assert "is a TorchScript program" in refusal(path)
    torch.save({"w": torch._neg_view(torch.ones(2))}, path)
    assert "negated or conjugated" in refusal(path)
    torch.save({"w": torch.ones(2).double()}, path)
    assert "holds float64 under 'w'" in refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b"N", b"}", b"(", b"K\x01", b"(t", b")\x85"])
def test_a_pickle_of_millions_of_opcodes_is_refused_in_a_moment(tmp_path: Path, piece: bytes):
    path = write(tmp_path / "a.pt", program(piece * (4_000_000 // len(piece))))
    began = time.process_time()
    assert "has more than 500,000 opcodes in its data.pkl" in refusal(path)
    assert time.process_time() - began < 5


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.pt")
    assert "is a pipe; expected a file" in refusal(tmp_path / "a.pt")


def test_shapes_are_checked_before_numbers_are_read(tmp_path: Path):
    def check(shapes: Shapes) -> None:
        assert shapes == {"w": (2, 3)}
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"no$"):
        load_torch(write(tmp_path / "a.pt", program(dictionary(w=tensor())), data=b"short"), check)
