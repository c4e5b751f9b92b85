"""A safetensors file is checked from its header, before MLX allocates what the header asks for."""

import json
import os
import struct
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_deltamem.files.safetensors import check_safetensors

FOUR = b"\0" * 16


def write(path: Path, header: object, data: bytes = FOUR, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_mlx_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    types = (mx.float32, mx.bfloat16, mx.float16, mx.bool_, mx.uint8, mx.int64, mx.complex64)
    tensors = {f"t{number}": mx.zeros((number, 3)).astype(dtype) for number, dtype in enumerate(types)}
    mx.save_safetensors(str(path), tensors, {"a": "b"})
    header = check_safetensors(path)
    assert {name: each.shape for name, each in header.tensors.items()} == {n: t.shape for n, t in tensors.items()}
    assert header.tensors["t1"].dtype == "BF16"
    assert header.metadata == {"a": "b"}
    mx.save_safetensors(str(path), tensors)
    assert check_safetensors(path).metadata == {}


REFUSED = {
    "number": (b"55", "not a JSON object"),
    "no json": (b"{" * 50, "not JSON"),
    "deep": (b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", "nested too deeply"),
    "many values": (b"[" + b"0," * 600_000 + b"0]", "values"),
    "no utf-8": (b'{"\xff": 1}', "not UTF-8"),
    "no description": ({"a": 5}, "no description of the tensor 'a'"),
    "no dtype": ({"a": entry(dtype=5)}, "no dtype for the tensor 'a'"),
    "negative": ({"a": entry(shape=(-4,))}, "has the shape"),
    "no whole number": ({"a": entry(shape=(4.0,))}, "has the shape"),
    "true": ({"a": entry(shape=(True, 4))}, "has the shape"),
    "dimensions": ({"a": entry(shape=[1] * 100)}, "has the shape"),
    "too large": ({"a": entry(shape=(2**31,), offsets=(0, 2**33))}, "has the shape"),
    "offsets": ({"a": entry(offsets=(16, 0))}, "has the data_offsets"),
    "one offset": ({"a": entry(offsets=(0,))}, "has the data_offsets"),
    "bytes": ({"a": entry(shape=(400_000_000,))}, "has 16 bytes for the tensor 'a', but its shape and dtype take 1,6"),
    "behind the end": ({"a": entry(offsets=(16, 32))}, "was cut short: the tensor 'a' ends at byte 32"),
    "shared": ({"a": entry(), "b": entry()}, "two tensors that share their numbers"),
    "overlapping": ({"a": entry(shape=(3,), offsets=(0, 12)), "b": entry(shape=(3,), offsets=(4, 16))}, "share"),
    "metadata": ({"__metadata__": {"a": 5}, "a": entry()}, "is not made of texts"),
    "line break": ({"a\nb": 5}, "the tensor 'a\\nb'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_other_headers_are_refused(case, tmp_path):
    header, expected = REFUSED[case]
    with pytest.raises(ValueError) as error:
        check_safetensors(write(tmp_path / "a.safetensors", header))
    assert expected in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("length", [0, 1, 17, 10**8, 2**31, 2**63, 2**64 - 1])
def test_lengths_of_the_header(length, tmp_path):
    with pytest.raises(ValueError, match="no header"):
        check_safetensors(write(tmp_path / "a.safetensors", {}, b"", length))


def test_what_is_no_safetensors_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"x", b"PK\x03\x04" * 10, b"\x80\x02}" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: it has"):
            check_safetensors(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ValueError, match="pointer of Git LFS"):
        check_safetensors(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        check_safetensors(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a file"):
        check_safetensors(path)
