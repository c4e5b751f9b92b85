"""`Folder`: the session files of the memories. One server uses it; of several ranks, rank 0 alone has it."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mlx_deltamem.files.atomic import locked
from mlx_deltamem.ranks.world import World
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.names import is_name
from mlx_deltamem.sessions.stored.file import SUFFIX

_LOCK = ".lock"
_IMPORT, _ASIDE = ".import-", ".aside-"


class Folder:
    """The folder of the session files. All ranks call its methods at the same places, and get the same results.

    Args:
        path: The folder. It is made if it is missing.
        world: The ranks.

    Raises:
        ValueError: Another server uses the folder.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path, world: World):
        self.path = path
        self._world = world
        self._held = ExitStack()
        world.first(self._hold)
        self._ignores_case = world.first((path / _LOCK.upper()).exists)

    def close(self) -> None:
        """Give the folder free."""
        self._held.close()

    def names(self) -> list[str]:
        """The names of all memories that have a file."""
        return self._world.first(lambda: sorted(filter(is_name, self._spelled())))

    def file(self, name: str) -> Path:
        """The place of the session file of a memory."""
        return self.path / f"{name}{SUFFIX}"

    def has(self, name: str) -> bool:
        """Whether a memory has a file."""
        return self._world.first(self.file(name).exists)

    def other_spelling(self, name: str) -> str | None:
        """A memory with the file that this name would have: most disks of Macs do not tell Anna from anna."""
        return self._world.first(lambda: self._other_spelling(name))

    def written_at(self, name: str) -> int | None:
        """When the file of a memory was written, in nanoseconds; None: there is no such file."""
        return self._world.first(lambda: written_at(self.file(name)))

    def content(self, name: str) -> bytes:
        """The content of a file. In the other ranks it is empty: they have no client to send it to."""
        return self.file(name).read_bytes() if self._world.is_first else b""

    def remove(self, name: str) -> None:
        """Delete the file of a memory, if there is one.

        Raises:
            RefusedError: It cannot be deleted.
        """
        try:
            self._world.first(lambda: self.file(name).unlink(missing_ok=True))
        except OSError as error:
            raise RefusedError(507, "storage", f"the memory was not deleted: {error.strerror}") from None

    @contextmanager
    def temporary(self, content: bytes) -> Iterator[Path]:
        """A context with a file of a content.

        Raises:
            OSError: It cannot be written.
        """
        file = self.file(f"{_IMPORT}{secrets.token_hex(8)}")
        try:
            self._world.first(lambda: _write_private(file, content))
            yield file
        finally:
            if self._world.is_first:
                # An error here is one of this rank alone.
                with suppress(OSError):
                    file.unlink()

    @contextmanager
    def set_aside(self, name: str) -> Iterator[None]:
        """A context to write another file in place of a damaged one. If that fails, the damaged file is back."""
        file, aside = self.file(name), self.file(f"{_ASIDE}{name}")
        self._world.first(lambda: _rename(file, aside))
        try:
            yield
        except BaseException:
            if self._world.is_first:
                aside.rename(file)
            raise
        self._world.first(aside.unlink)

    def _spelled(self) -> list[str]:
        """The names of all files, as the disk spells them."""
        return [file.name.removesuffix(SUFFIX) for file in self.path.glob(f"*{SUFFIX}")]

    def _other_spelling(self, name: str) -> str | None:
        if not self._ignores_case:
            return None
        alike = [each for each in self._spelled() if each.casefold() == name.casefold()]
        return alike[0] if alike and name not in alike else None

    def _hold(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.path / _LOCK
        lock.touch(mode=0o600)
        try:
            self._held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(f"another server uses {self.path}; name another folder by --memories") from None
        # A server that was killed may have left them.
        for file in self.path.glob(f"{_IMPORT}*{SUFFIX}"):
            with suppress(OSError):
                file.unlink()
        for aside in self.path.glob(f"{_ASIDE}*{SUFFIX}"):
            replaced = self.path / aside.name.removeprefix(_ASIDE)
            with suppress(OSError):
                aside.unlink() if replaced.exists() else aside.rename(replaced)


def written_at(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None: there is no such file."""
    # A link that leads to itself is no file either.
    try:
        return path.stat().st_mtime_ns if path.exists() else None
    except FileNotFoundError:
        return None


def _write_private(file: Path, content: bytes) -> None:
    """Write a new file that only its owner may read."""
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(content)


def _rename(file: Path, other: Path) -> None:
    # `Path.rename` returns a path, which is no JSON value.
    file.rename(other)
