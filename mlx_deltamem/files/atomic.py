"""Files and folders that are there whole or not at all."""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def user_path(name: str | Path) -> Path:
    """A path as a user writes it, `~` and all.

    Raises:
        FileNotFoundError: There is no such home folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"there is no home folder for {name}; name the folder in full") from None


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of `path` when the block ends, and goes if the block fails.

    Args:
        path: The file to make or replace.
        mode: Its permissions, from which the user's umask is taken.
    """
    temporary = _beside(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` when the block ends, and goes if the block fails.

    Raises:
        OSError: `path` is a file, or a folder that is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `new_file(path)`; nobody may be writing it now."""
    pattern = re.compile(rf"\.{re.escape(path.stem)}-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if pattern.fullmatch(other.name):
            other.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time within it; the lock goes with the process.

    Args:
        path: A folder or a file, locked against those alone that lock it too.
        wait: Whether to wait for another process.

    Raises:
        BlockingIOError: Another process is within it, and is not waited for.
        OSError: The file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def check_absent(path: Path) -> None:
    """Raise ValueError where something is already at the place of a folder that is to be made."""
    if path.exists():
        raise ValueError(f"{path} exists already; delete it or name another folder")


def one_line(error: Exception) -> str:
    """What was wrong with a file's content, on one line: the type of an error and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _beside(path: Path) -> Path:
    # The ending stays, since MLX tells formats by it.
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
