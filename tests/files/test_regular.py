"""Only regular files are opened: no link, pipe, socket or device, and none that is too large."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_deltamem.files.regular import checked_files, read_file, read_within


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(path))


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
    "broken": (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
    "circle": (lambda path: path.symlink_to(path), "a symbolic link"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
    "pipe": (os.mkfifo, "a named pipe (FIFO)"),
    "socket": (bind, "a socket"),
    "folder": (Path.mkdir, "a folder"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_named_and_not_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = ODD[kind]
    make(tmp_path / "odd")
    (tmp_path / "good").write_bytes(b"x")
    with pytest.raises(ValueError, match="odd is ") as error:
        checked_files(tmp_path, {"good": 1, "odd": 10, "absent": 10})
    assert f"odd is {words}" in str(error.value)
    with pytest.raises(ValueError, match="odd is ") as error:
        read_within(tmp_path, "odd", 10)
    assert f"odd is {words}" in str(error.value)


def test_all_problems_are_named_at_once(tmp_path):
    (tmp_path / "a").symlink_to("b")
    os.mkfifo(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"a is a symbolic link; b is a named pipe .*; c is too large \(5 bytes, 4 at"):
        checked_files(tmp_path, dict.fromkeys("abc", 4))


def test_a_file_in_a_folder_behind_a_link_is_not_read(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.png").write_bytes(b"secret")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "plots").symlink_to("../outside")
    with pytest.raises(ValueError, match=r"plots/x\.png is a symbolic link or lies behind one"):
        read_within(tmp_path / "inside", "plots/x.png", 10)
    (tmp_path / "inside" / "plots").unlink()
    (tmp_path / "inside" / "plots").mkdir()
    (tmp_path / "inside" / "plots" / "x.png").write_bytes(b"own")
    assert read_within(tmp_path / "inside", "plots/x.png", 3) == b"own"


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert read_within(tmp_path / "link", "a", 1) == b"x"
    assert checked_files(tmp_path / "link", {"a": 1}).keys() == {"a"}


def test_links_into_a_store_are_files_and_no_others(tmp_path):
    for name in ("store", "store/deep", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "store" / "1234").write_bytes(b"x")
    (tmp_path / "store" / "deep" / "1").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    store = tmp_path / "store"
    (tmp_path / "folder" / "a").symlink_to("../store/1234")
    assert read_within(tmp_path / "folder", "a", 1, store) == b"x"
    assert checked_files(tmp_path / "folder", {"a": 1}, store)["a"].size == 1
    for place in ("../secret", "../store/deep/1", "../store"):
        (tmp_path / "folder" / "b").symlink_to(place)
        with pytest.raises(ValueError, match="b is "):
            read_within(tmp_path / "folder", "b", 1, store)
        with pytest.raises(ValueError, match="b is "):
            checked_files(tmp_path / "folder", {"b": 1}, store)
        (tmp_path / "folder" / "b").unlink()


def test_a_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = checked_files(tmp_path, {"a": 9})
    assert checked_files(tmp_path, {"a": 9}) == before
    path.unlink()
    path.write_bytes(b"two")
    assert checked_files(tmp_path, {"a": 9}) != before


def test_reading_follows_links_and_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match=r"link is too large \(5 bytes\); expected 4 at most"):
        read_file(tmp_path / "link", 4)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="sparse is too large"):
        read_file(tmp_path / "sparse", 1 << 20)


def test_reading_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="expected a file"):
            read_file(path, 10)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent", 10)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 10)
