"""A connection between two ranks. It carries messages, and shows that the other rank is alive."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, cast

from mlx_deltamem.files.jsonl import Json

# Seconds. A rank that says nothing for so long counts as dead. Its other threads may keep the interpreter busy for
# some seconds, for example while a tokenizer is read.
SILENCE, BEAT = 25.0, 1.0
# The kind of a message, the length of its JSON and the length of the bytes behind it.
_HEAD = struct.Struct("!BIQ")
_BEAT, _DATA, _END, _ROWS = range(4)
# A message with a longer JSON is none of this program.
_LONGEST = 2**30
_PART = 1 << 20


@dataclass(frozen=True)
class End:
    """How a rank ended.

    Attributes:
        code: Its exit code.
        message: Its error; empty if there is none.
        kind: `done`: the program of the rank has ended. `lost`: the connection was closed before that. `silent`: the
            rank has said nothing for too long.
    """

    code: int
    message: str
    kind: Literal["done", "lost", "silent"] = "done"


@dataclass(frozen=True)
class Message:
    """A message: a JSON value, and bytes."""

    value: Json
    content: bytes = b""


class Connection:
    """A connection to another rank.

    Args:
        sock: The connected socket.
        name: The name of the other rank, for messages.
        ended: Called once, in another thread, when the other rank has ended.
    """

    def __init__(self, sock: socket.socket, name: str, ended: Callable[[End], None]):
        self.name = name
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self._socket = sock
        self._sending = threading.Lock()
        self._ended = ended
        self._take: Callable[[Json], None] | None = None
        self._waiting: list[Json] = []
        self._taking = threading.Lock()
        sock.settimeout(SILENCE)
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send a message, which the other rank finds in its `messages`."""
        self._send(_DATA, message)

    def send_rows(self, value: Json) -> None:
        """Send a value that the function of `take_rows` of the other rank gets at once."""
        self._send(_ROWS, Message(value))

    def take_rows(self, take: Callable[[Json], None]) -> None:
        """Let a function take the values of `send_rows`. It is called in another thread."""
        with self._taking:
            waiting, self._waiting, self._take = self._waiting, [], take
            for value in waiting:
                take(value)

    def send_end(self, end: End) -> None:
        """Tell the other rank that this one ends."""
        self._send(_END, Message([end.code, end.message]))

    def _send(self, kind: int, message: Message) -> None:
        text = json.dumps(message.value).encode()
        # A rank that is gone is noticed by the thread that listens.
        with suppress(OSError), self._sending:
            self._socket.sendall(_HEAD.pack(kind, len(text), len(message.content)) + text)
            # In parts, because the time limit of a socket is for a whole call.
            for begin in range(0, len(message.content), _PART):
                self._socket.sendall(message.content[begin : begin + _PART])

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            self._send(_BEAT, Message(None))

    def _listen(self) -> None:
        try:
            while True:
                kind, length, size = _HEAD.unpack(self._read(_HEAD.size))
                if length > _LONGEST:
                    raise OSError("this is no message")
                message = Message(json.loads(self._read(length)), self._read(size))
                if kind == _DATA:
                    self.messages.put(message)
                elif kind == _ROWS:
                    self._take_or_keep(message.value)
                elif kind == _END:
                    code, text = cast("tuple[int, str]", message.value)  # as `send_end` sends it
                    self._ended(End(int(code), str(text)))
                    return
        except TimeoutError:
            self._ended(End(1, "", "silent"))
        except (OSError, ValueError):
            self._ended(End(1, "", "lost"))

    def _take_or_keep(self, value: Json) -> None:
        with self._taking:
            if self._take is None:
                self._waiting.append(value)
            else:
                self._take(value)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, _PART))
            if not part:
                raise ConnectionError("the other rank has closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
