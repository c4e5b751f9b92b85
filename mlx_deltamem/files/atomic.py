"""Write files and folders atomically, lock them, and check the paths that a user names."""

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def user_path(name: str | Path) -> Path:
    """Expand `~` in a path that a user gave.

    Raises:
        FileNotFoundError: The user named after `~` has no home folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"there is no home folder for {name}; give the full path") from None


def resolved(name: str | Path) -> Path:
    """The full path of a file or folder that a user named, behind all links. It may not exist.

    Raises:
        FileNotFoundError: As in `user_path`.
        OSError: A link leads to itself.
    """
    path = user_path(name)
    try:
        return path.resolve()
    except RuntimeError:
        # Before Python 3.13, `resolve` raises this error for such a link.
        raise OSError(f"{path} is a link that leads to itself; name another place") from None


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of an empty temporary file in the same folder, which replaces `path` when the block ends.

    If the block fails, the temporary file is deleted and `path` stays as it was.

    Args:
        path: The file to create or replace.
        mode: The permissions of the new file, before the user's umask is applied.

    Raises:
        OSError: The folder cannot be written.
    """
    temporary = _beside(path)
    try:
        with _told_plainly(path):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    except BaseException:
        # The first error is to be told, for example a full disk or Ctrl-C.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary folder, which is renamed to `path` when the block ends.

    If the block fails, the temporary folder is deleted. Missing parent folders are created.

    Raises:
        OSError: `path` is a file or a folder that is not empty, or its parent cannot be written.
    """
    temporary = _beside(path)
    try:
        with _told_plainly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        yield temporary
        temporary.rename(path)
        _flush_folder(path.parent)
    except BaseException:
        # Ctrl-C may come when the folder has its new name already.
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create a folder and its parents. If the block fails, those that are new and still empty are removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def written_by_mlx(path: Path) -> Iterator[None]:
    """A context in which MLX writes the temporary file of `path`. MLX raises RuntimeError where a disk is full.

    Raises:
        OSError: MLX could not write it.
    """
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} could not be written ({' '.join(str(error).split())}); is the disk full?") from None


def remove_unfinished(path: Path) -> None:
    """Delete what killed processes left behind in `new_file(path)` or `new_folder(path)`.

    The caller must know that no process is writing `path`, for instance because it holds a lock.
    """
    pattern = re.compile(rf"\.{re.escape(path.stem)}-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if not pattern.fullmatch(other.name):
            continue
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock while the block runs. The operating system releases it if the process dies.

    Args:
        path: An existing folder or file. The lock is advisory: it stops only those who also use `locked`.
        wait: Wait until the lock is free.

    Raises:
        BlockingIOError: Another holder has the lock, and `wait` is false.
        OSError: The path does not exist, or its file system does not support locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def check_absent(path: Path) -> None:
    """Check that nothing is at a path; for a file or folder that a command is about to create.

    Raises:
        ValueError: Something is there, be it a link that leads nowhere; or the name has a NUL character.
        OSError: The path cannot be looked at.
    """
    # The link itself counts: to write a file there would replace it.
    if (kind := file_kind(path)) or path.is_symlink():
        what = "" if kind else " (a link that leads nowhere)"
        other = "folder" if path.is_dir() else "place"
        raise ValueError(f"{path} exists already{what}; delete it or name another {other}")


def check_file_name(path: Path) -> None:
    """Check that a path can be the name of a file.

    Raises:
        ValueError: The name is not UTF-8, or there is something else than a file: a folder, a pipe, a device.
        OSError: The path cannot be looked at: the name is too long, or a link leads to itself.
    """
    check_utf8(path)
    kind = file_kind(path)
    if kind not in ("", "file"):
        raise ValueError(f"{path} is a {kind}; expected a file, or a name that is free")


def check_utf8(path: Path) -> None:
    """Check that a path is UTF-8. MLX reads and writes no others.

    Raises:
        ValueError: It is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the file name {path} is not UTF-8 (character {error.start + 1}); give the file another name"
        ) from None


def check_new_file(path: Path) -> None:
    """Check, before long work, that its result can be written with `new_file(path)`.

    Raises:
        ValueError, OSError: As `check_file_name`; or the folder is missing or read-only.
    """
    check_file_name(path)
    temporary = _beside(path.resolve())
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}); name another file") from None
    temporary.unlink(missing_ok=True)


def file_kind(path: Path) -> str:
    """Return what a path, or the target of a link, is: "file", "folder", "pipe", "socket", "device"; "" for nothing.

    Raises:
        OSError: The path cannot be looked at.
        ValueError: The name has a NUL character.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except ValueError:
        raise ValueError(f"the file name {str(path)!r} has a NUL character; give the file another name") from None
    return _KINDS.get(stat.S_IFMT(mode), "device")


def one_line(error: Exception) -> str:
    """Return the type and the message of an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    """A context to make something beside `path` in. The error names `path`, and not a temporary file."""
    try:
        yield
    except PermissionError:
        raise PermissionError(f"{path} cannot be made, its folder is read-only; name another place") from None
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{path} cannot be made, a file is in its way; name another place") from None
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _beside(path: Path) -> Path:
    # The suffix stays, because MLX chooses the format by it.
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def _flush_folder(path: Path) -> None:
    """Flush the names in a folder. Some file systems cannot do this. That is no error: the new file is complete."""
    with suppress(OSError):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
