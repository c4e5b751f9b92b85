"""Checks that the readers of other programs' files share.

Such a file may be damaged or hostile. The readers check every size in it before they allocate memory, and refuse the
file with an error of one line.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

from mlx_deltamem.files.atomic import file_kind

# The largest size of one dimension of an mlx array.
MAX_SIZE = 2**31 - 1
# An adapter has a few hundred arrays; each takes about a hundred bytes in the directory of a zip archive.
_MOST_ENTRIES, _MOST_DIRECTORY_BYTES = 20_000, 8 << 20
# The end of a zip archive (APPNOTE.TXT 4.3.16), with the longest comment, and the same of zip64 before it.
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, (1 << 16) - 1
_END_64, _END_64_BYTES, _LOCATOR_64, _LOCATOR_64_BYTES = b"PK\x06\x06", 56, b"PK\x06\x07", 20
_ENCRYPTED = 1

# The shapes of a file's arrays, by name.
Shapes = Mapping[str, tuple[int, ...]]


class RefusedError(ValueError):
    """The reason why a file is refused, without the file's name; the reader's public function adds the name."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading. It may be a link to a file, but no pipe, which would wait for a writer.

    Raises:
        RefusedError: It is a pipe, a socket or a device.
        OSError: There is no such file, or it cannot be read.
    """
    kind = file_kind(path)
    if kind not in ("", "file", "folder"):
        raise RefusedError(f"is a {kind}; expected a file")
    # A folder, or nothing, has the error of Python itself.
    return path.open("rb")


def opened_zip(file: BinaryIO) -> ZipFile:
    """Open a zip archive with a bounded number of entries, each of which can be read.

    Raises:
        RefusedError: It is damaged, has too many entries, two of the same name, or an encrypted one.
    """
    with damage_in("the zip archive"):
        _check_directory(file)
        archive = ZipFile(file)
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise RefusedError(f"has {len(entries):,} zip entries, expected {_MOST_ENTRIES:,} at most")
    if len({entry.filename for entry in entries}) != len(entries):
        raise RefusedError("has two zip entries of the same name, expected one; get the file again")
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise RefusedError(f"has an encrypted zip entry {shown(entry.filename)}; expected one without a password")
    return archive


def read_entry(archive: ZipFile, name: str) -> bytes:
    """Read a zip entry, at most as many bytes as the archive says that it has.

    `ZipFile.read` unpacks all that is there, and compares the number of bytes afterwards.

    Raises:
        RefusedError: It is truncated or damaged.
    """
    entry = archive.getinfo(name)
    with damage_in(f"its zip entry {shown(name)}"), archive.open(entry) as file:
        data = file.read(entry.file_size)
    if len(data) != entry.file_size:
        raise RefusedError(f"has {len(data)} bytes in {shown(name)}, expected {entry.file_size}; get the file again")
    return data


def _check_directory(file: BinaryIO) -> None:
    """Check the size of the list of entries, which ZipFile reads as a whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LOCATOR_64_BYTES - _END_64_BYTES - _END_BYTES - _LONGEST_COMMENT))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(_END)
    found = [int.from_bytes(tail[at + 12 : at + 16], "little")] if at >= 0 else []
    if at >= _LOCATOR_64_BYTES and tail[at - _LOCATOR_64_BYTES :].startswith(_LOCATOR_64):
        end = tail[at - _LOCATOR_64_BYTES - _END_64_BYTES :]
        found = [int.from_bytes(end[40:48], "little")] if end.startswith(_END_64) else []
    if any(_MOST_DIRECTORY_BYTES < length <= size for length in found):
        raise RefusedError(f"has a list of zip entries of {found[0]:,} bytes, expected {_MOST_DIRECTORY_BYTES:,}")


@contextmanager
def damage_in(part: str) -> Iterator[None]:
    """Turn every error in the block into a RefusedError which says that `part` of the file is damaged."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:  # zipfile, numpy and pickletools do not document all errors that damaged input causes
        raise RefusedError(f"{part} is truncated or damaged ({shown(str(error))}); get the file again") from error


def shown(text: str, most: int = 100) -> str:
    """Escape and shorten text from a file, so that it fits into an error of one line."""
    # Not the whole text is escaped: it can be very long.
    return repr(text[:most])[1:-1][:most]
