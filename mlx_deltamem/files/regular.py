"""Files that somebody else may have put there: only regular files of a bounded size are opened.

To open a named pipe is to wait for a writer, to open a device may change it, and a symbolic link leads to another file.
"""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlx_deltamem.files.atomic import file_kind

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ADVICE = "put a copy there or remove it"


@dataclass(frozen=True)
class Stamp:
    """The facts about a file that change when it is replaced or written: its place on the disk, its size, its times."""

    device: int
    inode: int
    size: int
    changed: int
    modified: int


def read_file(path: Path, most: int) -> bytes:
    """Read a file; `path` may be a link.

    Args:
        path: The file.
        most: The largest size, in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        OSError: It cannot be read.
        ValueError: It is a pipe, a socket or a device, or it is larger.
    """
    kind = file_kind(path)
    if kind not in ("", "file", "folder"):
        raise ValueError(f"{path} is a {kind}; expected a file")
    # A folder, or nothing, has the error of Python itself.
    return _content(os.open(path, os.O_RDONLY | os.O_NONBLOCK), path, most)


def read_within(folder: Path, name: str, most: int, store: Path | None = None) -> bytes:
    """Read a file in a folder. No link is followed: not the file, and no folder on the way to it.

    Args:
        folder: The folder, which may be a link itself.
        name: The path within the folder, with `/`; it has no `..`.
        most: The largest size, in bytes.
        store: A folder that `folder` keeps its files in: a link to a file right in it counts as that file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is a link, or is no regular file, or is larger.
    """
    folder, name = _stored(folder, name, store)
    *folders, last = PurePosixPath(name).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            _check_kind(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode, folder / name, stat.S_IFDIR)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        _check_kind(os.stat(last, dir_fd=at, follow_symlinks=False).st_mode, folder / name, stat.S_IFREG)
        # Another process may have put a link or a pipe there in the meantime.
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    return _content(descriptor, folder / name, most)


def checked_files(folder: Path, most: Mapping[str, int], store: Path | None = None) -> dict[str, Stamp]:
    """Check files in a folder by their names, before any of them is opened.

    Args:
        folder: The folder.
        most: The largest size of each file in bytes, by name.
        store: As in `read_within`.

    Returns:
        The stamps of those that are there.

    Raises:
        ValueError: Some are links, or no regular files, or larger; the message names all of them.
    """
    stamps, problems = {}, []
    for name, limit in most.items():
        try:
            found = os.lstat(Path(*_stored(folder, name, store)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        if problem := _problem(found, limit):
            problems.append(f"{name} is {problem}")
        stamps[name] = Stamp(found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns)
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; expected files in the folder itself: {_ADVICE}")
    return stamps


def _stored(folder: Path, name: str, store: Path | None) -> tuple[Path, str]:
    """The folder and the name of a file, which is in the store if there is a link to it."""
    path = folder / name
    if store is not None and path.is_symlink():
        target = path.resolve()
        if target.parent == store.resolve():
            return target.parent, target.name
    return folder, name


def _problem(found: os.stat_result, limit: int) -> str:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        return _KINDS.get(kind, "no file")
    return f"too large ({found.st_size:,} bytes, {limit:,} at most)" if found.st_size > limit else ""


def _check_kind(mode: int, path: Path, expected: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind == expected:
        return
    if kind == stat.S_IFREG:
        raise NotADirectoryError(f"a part of {path} is a file; expected a folder")
    raise ValueError(f"{path} is {_KINDS.get(kind, 'no file')} or lies behind one; {_ADVICE}")


def _content(descriptor: int, path: Path, most: int) -> bytes:
    """Read an open file, and close it."""
    found = os.fstat(descriptor)
    if stat.S_IFMT(found.st_mode) != stat.S_IFREG:
        os.close(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise ValueError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}; expected a file")
    with os.fdopen(descriptor, "rb") as file:
        # A file can grow while it is read.
        content = file.read(most + 1) if found.st_size <= most else b""
    size = max(found.st_size, len(content))
    if size > most:
        raise ValueError(f"{path} is too large ({size:,} bytes); expected {most:,} at most")
    return content
