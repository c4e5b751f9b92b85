import os
import stat
import threading
from pathlib import Path

import pytest

from mlx_deltamem.files.atomic import (
    check_absent,
    check_new_file,
    file_kind,
    locked,
    new_file,
    new_folder,
    one_line,
    resolved,
)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_permissions(tmp_path):
    with new_file(tmp_path / "private", mode=0o600) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a"
    with new_folder(path) as temporary:
        (temporary / "x").write_text("1")
        assert not path.exists()
    assert names(path) == ["x"]
    assert names(path.parent) == ["a"]


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("1")
        raise ValueError("stop")
    assert names(tmp_path) == []


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_ctrl_c_after_the_last_step_is_still_ctrl_c(new, tmp_path, monkeypatch):
    def pressed(path: Path) -> None:
        # This is called for the folder when the result has its name.
        if path == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr("mlx_deltamem.files.atomic._flush", pressed)
    with pytest.raises(KeyboardInterrupt), new(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_folder_that_cannot_be_flushed_is_no_error(new, tmp_path, monkeypatch):
    """The new file is complete by then. An error would say that it was not written."""

    def flush(path: Path) -> None:
        if path == tmp_path:
            raise OSError("not supported here")

    monkeypatch.setattr("mlx_deltamem.files.atomic._flush", flush)
    with new(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def pressed(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)
        if path.name.startswith("."):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", pressed)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_the_kinds_of_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    found = {name: file_kind(tmp_path / name) for name in ("pipe", "file", "link", "nothing", "file/in")}
    assert found == {"pipe": "pipe", "file": "file", "link": "file", "nothing": "", "file/in": ""}
    assert file_kind(tmp_path) == "folder"
    assert file_kind(Path("/dev/null")) == "device"


def test_a_place_for_a_new_file(tmp_path):
    (tmp_path / "old").write_text("old")
    check_new_file(tmp_path / "old")
    check_new_file(tmp_path / "new")
    assert names(tmp_path) == ["old"]
    with pytest.raises(OSError, match="cannot be written"):
        check_new_file(tmp_path / "no" / "new")


def test_a_place_where_nothing_may_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link", "pipe", "."):
        with pytest.raises(ValueError, match="exists already; delete it"):
            check_absent(tmp_path / name)
    with pytest.raises(ValueError, match=r"dangling exists already \(a link that leads nowhere\); delete it"):
        check_absent(tmp_path / "dangling")
    for name in ("nothing", "file/in", "nothing/in"):
        check_absent(tmp_path / name)


@pytest.mark.parametrize("target", ["loop", "a" * 300])
def test_a_link_that_cannot_be_followed_is_no_free_place(target, tmp_path):
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises((ValueError, OSError), match="loop"):
        check_absent(tmp_path / "loop")


def test_a_link_that_leads_to_itself_is_an_error_of_the_system(tmp_path):
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    (tmp_path / "other").symlink_to("loop.safetensors")
    for path in (loop, tmp_path / "other" / "chat.safetensors"):
        # Python 3.13 finds it only when the file is opened.
        with pytest.raises(OSError):
            resolved(path).stat()
    assert resolved(tmp_path / "nothing") == tmp_path.resolve() / "nothing"


def test_a_locked_folder_is_refused_or_waited_for(tmp_path):
    entered = []

    def enter() -> None:
        with locked(tmp_path):
            entered.append(True)

    waiting = threading.Thread(target=enter)
    with locked(tmp_path):
        with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
            pass
        waiting.start()
        waiting.join(0.2)
        assert not entered
    waiting.join(60)
    assert entered
    with locked(tmp_path, wait=False):
        pass


def test_an_error_is_told_on_one_line():
    assert one_line(ValueError("half\n  a file")) == "ValueError: half a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
@pytest.mark.parametrize("make", [new_file, new_folder])
def test_a_read_only_folder_is_told_plainly(make, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"out cannot be made, its folder is read-only"), make(tmp_path / "out"):
        pass
    tmp_path.chmod(0o700)
