"""Texts that are entered, and the file of a chat, are checked before the chat goes on."""

import os
import time
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from mlx_deltamem.cli.entered import check_session_file, checked_message, checked_system_prompt
from mlx_deltamem.cli.remembered import read_remembered, to_remember
from tests.conftest import backbone


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(backbone()))


@pytest.mark.parametrize("text", ["a\udcffb", "a\0b"])
def test_what_is_no_text_is_refused(text, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    for check in (
        lambda: checked_message(text, "it", None, tokenizer),
        lambda: checked_system_prompt(text),
        lambda: to_remember(text),
        lambda: read_remembered(tmp_path / "a.txt"),
    ):
        with pytest.raises(ValueError, match=r"half a character|NUL"):
            check()


def test_texts_are_kept(tokenizer):
    assert checked_message("\ufeffone\ttwo\n", "it", 4096, tokenizer) == "one\ttwo\n"
    assert checked_system_prompt(None) is None


@pytest.mark.parametrize("piece", ["hello there. ", "x", " ", "é", "\n\n"])
def test_a_long_text_is_refused_at_once(piece, tokenizer):
    text = piece * (2_000_000 // len(piece))
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"it is more than 512 tokens \(.* characters\); the model's window is 512"):
        checked_message(text, "it", 512, tokenizer)
    # It takes hundredths of a second; the whole text takes a minute.
    assert time.monotonic() - begin < 5
    assert checked_message(text, "it", None, tokenizer) == text


@pytest.mark.parametrize("piece", ["hello there. ", "x", "é"])
def test_the_limit_is_exact(piece, tokenizer):
    text = piece * 40
    count = len(tokenizer.encode(text, add_special_tokens=False))
    assert checked_message(text, "it", count, tokenizer) == text
    with pytest.raises(ValueError, match=f"more than {count - 1} tokens"):
        checked_message(text, "it", count - 1, tokenizer)


def test_session_files(tmp_path):
    for name in ("new.safetensors", "δ 你.safetensors"):
        check_session_file(tmp_path / name)
    check_session_file(None)
    assert list(tmp_path.iterdir()) == []
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "link.safetensors").symlink_to("folder.safetensors")
    before = sorted(tmp_path.iterdir())
    for name, message in {
        "pipe.safetensors": "is a pipe; expected a file",
        "folder.safetensors": "is a folder; expected a file",
        "link.safetensors": "is a folder; expected a file",
        "loop.safetensors": "symbolic links",
        "a\udcff.safetensors": "is not UTF-8",
        "a\0.safetensors": "has a NUL character",
        f"{'x' * 240}.safetensors": "cannot be written",
        f"{'x' * 300}.safetensors": "too long",
        ".safetensors": "has no name before .safetensors; name a session file like chat.safetensors",
        "a.txt": "does not end in .safetensors",
        "no/a.safetensors": "there is no folder",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            check_session_file(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
