"""The ranks of a command: they run the same program, and the first one alone reads, prints and saves.

Rank 0 is connected with each other rank. What it has read, and the errors of that, go to the others as messages. So all
ranks take the same way through the program, which they must do: MLX's operations between ranks wait for all of them.
"""

import builtins
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO, TypeVar, cast

import mlx.core as mx

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.ranks.connection import SILENCE, Connection, End, Message

# A value that JSON has. Tuples reach the other ranks as lists.
T = TypeVar("T")

# Seconds that a rank gets to come to an end by itself, after another one has said that it ends.
_GRACE = 2.0
# Seconds in which a rank that is gone is noticed, if its connection is closed.
_NOTICED = 5.0
# Seconds to wait for the others at the end of the program.
_LEAVING = 10.0
# The exit code of a rank that ends because another one is gone.
GONE = 1
# The errors that may go from the first rank to the others. A command expects them, or handles them.
_ERRORS = ("ValueError", "FileNotFoundError", "PermissionError", "OSError", "EOFError", "KeyboardInterrupt")


class RankError(BaseException):
    """An error that perhaps only this rank has. The ranks cannot go on together after it, and no rank may try again.

    So it is not an `Exception`: programs handle those and go on.
    """


@dataclass(eq=False)
class World:
    """The ranks of a command.

    Attributes:
        rank: The number of this rank.
        size: The number of ranks.
        group: MLX's group of them; None for a rank alone.
        connections: By rank, the connections of this rank: those of rank 0 with all others, or the one with rank 0.
        errors: The stream for a last line, where another rank is gone.
    """

    rank: int
    size: int
    group: mx.distributed.Group | None = None
    connections: Mapping[int, Connection] = field(default_factory=dict)
    errors: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._finished: dict[int, threading.Event] = {rank: threading.Event() for rank in range(self.size)}
        self._is_leaving = False
        self._is_told = threading.Event()
        self._guard: IO[bytes] | None = None

    def set_guard(self, guard: IO[bytes]) -> None:
        """Name the standard input of the process that ends this one if it cannot notice that a rank is gone."""
        self._guard = guard

    def __deepcopy__(self, _: object) -> "World":
        # A copied model is held by the same ranks.
        return self

    @property
    def is_first(self) -> bool:
        """Whether this rank reads, prints and saves."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is one rank only."""
        return self.size == 1

    def share(self, value: T) -> T:
        """Get the value, a JSON value, that rank 0 gives."""
        if self.is_alone:
            return value
        if self.is_first:
            self._send(Message(cast(Json, value)))
            return value
        return cast(T, self._next().value)

    def first(self, action: Callable[[], T]) -> T:
        """Let rank 0 alone do something. All ranks get its result, a JSON value, or its error.

        Raises:
            ValueError, OSError, EOFError, KeyboardInterrupt: As `action`.
            RankError: `action` had another error, which the other ranks do not get.
        """
        if self.is_alone:
            return action()
        if not self.is_first:
            name, result = cast("list[Json]", self._next().value)
            if name is not None:
                raise getattr(builtins, str(name))(result)
            return cast(T, result)
        try:
            done = action()
        except (ValueError, OSError, EOFError, KeyboardInterrupt) as error:
            name = next(each for each in _ERRORS if isinstance(error, getattr(builtins, each)))
            self._send(Message([name, str(error)]))
            raise
        except Exception as error:
            raise RankError(f"{type(error).__name__}: {error}") from error
        self._send(Message([None, cast(Json, done)]))
        return done

    def collect(self, value: Json) -> list[Json]:
        """Get the values that all ranks give, in the order of their ranks. All ranks get the list."""
        if self.is_alone:
            return [value]
        if self.is_first:
            values = [value, *(self.connections[rank].messages.get().value for rank in range(1, self.size))]
            self._send(Message(values))
            return values
        self.connections[0].send(Message(value))
        return cast("list[Json]", self._next().value)

    def check_common(self, error: Exception) -> None:
        """Check that all ranks have had an error, before the program goes on after it.

        All of them run the same program on the same values, so most errors come in all. Those of MLX and of the machine
        (RuntimeError, MemoryError) may come in one rank, for which the others then wait for good.

        Raises:
            RankError: This rank is one of several, and may be the only one with the error.
        """
        if not self.is_alone and isinstance(error, RuntimeError | MemoryError):
            raise RankError(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def file(self, path: Path) -> Iterator[Path]:
        """A file of rank 0, for all ranks: the file itself, and in other ranks a copy for the time of the context.

        A file that is missing is missing for all.

        Raises:
            ValueError, OSError: The file cannot be read.
            RuntimeError: A copy cannot be written, in this rank alone.
        """
        if self.is_alone:
            yield path
            return
        content = b""

        def read() -> bool:
            nonlocal content
            content = path.read_bytes() if path.is_file() else b""
            return path.is_file()

        is_there = self.first(read)
        if self.is_first:
            if is_there:
                self._send(Message(None, content))
            yield path
            return
        folder = Path(tempfile.mkdtemp(prefix="mlx_deltamem_"))
        try:
            copy = folder / path.name
            if is_there:
                _write_copy(copy, self._next().content)
            yield copy
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def leave(self, code: int, message: str = "") -> None:
        """End this rank. If `code` is not 0, the other ranks end too, with the same exit code.

        Rank 0 has printed its error before. It prints the error `message` of another rank, unless it comes to an error
        of its own, which is then most likely the same one.
        """
        with self._lock:
            if self._is_leaving:
                return
            self._is_leaving = True
        self._tell_guard(self.connections)
        for connection in self.connections.values():
            connection.send_end(End(code, message))
        # Rank 0 waits for all; the others wait for the word of rank 0, which may print their error.
        for rank in self.connections:
            self._finished[rank].wait(_LEAVING)

    def wait_for_end(self) -> None:
        """Wait for the end of this process after an error of MLX: most likely another rank is gone.

        It returns if that is not so.
        """
        # MLX notices a closed connection when this program does, or some moments before it.
        self._is_told.wait(_NOTICED)
        if self._is_told.is_set():
            threading.Event().wait(_LEAVING)

    def ended(self, rank: int, name: str, end: End) -> None:
        """Called in another thread when a rank has ended: this process ends too, unless both have done their work.

        Args:
            rank: The rank.
            name: The name of its machine.
            end: How it ended.
        """
        self._finished[rank].set()
        if end.kind == "done":
            self._tell_guard([rank])
        if end.kind == "done" and end.code == 0:
            return
        self._is_told.set()
        with self._lock:
            is_leaving = self._is_leaving
        if is_leaving:
            return
        if end.kind == "done":
            # Most errors come in all ranks. Each then ends by itself.
            threading.Event().wait(_GRACE)
            with self._lock:
                if self._is_leaving:
                    return
                self._is_leaving = True
            message = end.message or f"it has ended with exit code {end.code}"
            text = f"rank {rank} ({name}): {message}" if self.is_first else ""
        else:
            with self._lock:
                self._is_leaving = True
            how = "is gone" if end.kind == "lost" else f"has not answered for {SILENCE:.0f} seconds"
            text = f"rank {rank} ({name}) {how}; this rank ends too, and files are as they were saved last"
        # From here on this process ends by itself, and the guard must not say the same.
        self._tell_guard(self.connections)
        if text:
            # MLX's ring writes parts of its lines at the same time. So this begins a new line, and is written at once.
            begin = "" if self.group is None else "\n"
            self.errors.write(f"{begin}error: {text}\n")
            self.errors.flush()
        self._pass_on(rank, end)
        os._exit(end.code)

    def _pass_on(self, rank: int, end: End) -> None:
        """Tell the other ranks that this one ends because of a rank."""
        for other, connection in self.connections.items():
            if other != rank or (self.is_first and end.kind == "done"):
                connection.send_end(End(end.code, ""))
        if self.is_first:
            with suppress(OSError, ValueError):
                sys.stdout.flush()

    def _tell_guard(self, ranks: Iterable[int]) -> None:
        """Tell the guard that ranks may close their connections."""
        if self._guard is not None:
            with suppress(OSError, ValueError):
                self._guard.write("".join(f"{rank}\n" for rank in ranks).encode())
                self._guard.flush()

    def _send(self, message: Message) -> None:
        for connection in self.connections.values():
            connection.send(message)

    def _next(self) -> Message:
        return self.connections[0].messages.get()


def _write_copy(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RuntimeError(f"the copy {path} of a file of rank 0 cannot be written: {error.strerror}") from None
