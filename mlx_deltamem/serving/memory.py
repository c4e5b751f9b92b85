"""One memory of the server: a chat, its file, and the work that waits for it."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import RefusedError, ReplyRequest, Revisions
from mlx_deltamem.serving.folder import written_at
from mlx_deltamem.serving.readers import Reader, Readers
from mlx_deltamem.serving.service import MemoryInfo, TurnInfo
from mlx_deltamem.serving.watching import Event
from mlx_deltamem.sessions.changing.loops import loop_changes, loop_kept, loop_messages, tool_loops
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.place import turn_ids
from mlx_deltamem.sessions.turns.snapshot import Snapshot


class Memory:
    """A loaded memory.

    Args:
        name: Its name; None for a private memory of one chat, which is only in RAM.
        chat: The chat that holds it.
        path: Its session file; None for a private memory.

    Attributes:
        is_busy: Whether a turn that changes it is under way.
        is_unsaved: Whether it has turns that are not in its file. Only `Saver` lets that be.
        is_deleted: Whether it was deleted. What waits for it then uses the next memory of its name.
        waiting: The work that begins when it is free, in order; and what is done instead if it was deleted.
        last_used: When it was used last, as a count of uses of all memories.
        counted: Its bytes when they were counted last.
        written_at: When its file was written that the memory was loaded from or saved to, in nanoseconds; None if there
            was none.
        listeners: Called with each event of the memory.
        settled: The memory before the turn that is under way; None if none has begun.
        readers: Copies for chats that only read it.
    """

    def __init__(self, name: str | None, chat: ChatSession, path: Path | None):
        self.name = name
        self.chat = chat
        self.path = path
        self.is_busy = False
        self.is_unsaved = False
        self.is_deleted = False
        self.waiting: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self.last_used = 0
        self.counted = 0
        self.written_at: int | None = None
        self.listeners: list[Callable[[Event], None]] = []
        self.settled: Snapshot | None = None
        self.readers = Readers()

    @property
    def revision(self) -> str:
        """A text that is another one after each change of the turns or settings."""
        chat = self.chat
        content = [turn_ids(chat.turns), chat.history, chat.write, len(chat.turns)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def has_work(self) -> bool:
        """Whether a turn is under way, waits or is not saved."""
        return self.is_busy or self.is_unsaved or bool(self.waiting)

    @property
    def is_in_use(self) -> bool:
        """Whether the memory has to stay in RAM: it has work, or a client watches."""
        return self.has_work or bool(self.listeners)

    @property
    def nbytes(self) -> int:
        """The bytes of the states and of the keys and values that are kept, those of its copies among them."""
        state = self.chat.state
        places = sum(place is not None for turn in state.turns for place in (turn.before, turn.between))
        return state.kept_bytes + self.readers.nbytes + (places + 1) * sum(each.nbytes for each in state.states)

    def count(self) -> None:
        """Count the bytes. This takes too long to be done for all memories with each request."""
        self.counted = self.nbytes

    def check(self, match: Revisions) -> None:
        """Check that the memory has one of some revisions.

        Raises:
            RefusedError: It has another one.
        """
        if match is not None and self.revision not in match:
            expected = " or ".join(match)
            raise RefusedError(
                412,
                "revision_mismatch",
                f"the memory has revision {self.revision}, not {expected}; read it again first",
            )

    def reader(self, request: ReplyRequest) -> Reader:
        """A copy for a request that only reads the memory, also while a turn is under way."""
        now = self.chat.state.snapshot() if self.settled is None else self.settled
        return self.readers.take(self.chat, now, request)

    @property
    def is_saved(self) -> bool:
        """Whether all turns are in the file. A private memory has none."""
        return self.path is not None and not self.is_unsaved

    def save(self) -> None:
        """Save the memory to its file; a private memory has none.

        Raises:
            RefusedError: Another program has saved the file, or the disk is full or cannot be written.
        """
        if self.path is None:
            return
        try:
            self.chat.save(self.path)
        except ValueError as error:
            raise RefusedError(
                409, "memory_changed", f"memory {self.name} was not saved: {told(error, self.path)}"
            ) from None
        except OSError as error:
            raise RefusedError(507, "storage", f"memory {self.name} was not saved: {told(error, self.path)}") from None
        self.is_unsaved = False
        path = self.path
        self.written_at = world_of(self.chat.model).first(lambda: written_at(path))

    def changed(self, turn: str = "") -> None:
        """Count its bytes again, and tell those who watch the memory that its turns have changed.

        Args:
            turn: The id of the last turn.
        """
        self.count()
        event = {"event": "turn", "id": turn, "revision": self.revision} if self.listeners else {}
        for listener in list(self.listeners):
            listener(event)

    def info(self) -> MemoryInfo:
        """The memory, as clients see it."""
        chat = self.chat
        return MemoryInfo(
            name=self.name or "",
            revision=self.revision,
            turns=len(tool_loops(chat.turns)),
            tokens=sum(turn.length for turn in chat.turns),
            state_bytes=sum(state.nbytes for state in chat.memory.values()),
            history=chat.history,
            write=chat.write,
            loaded=True,
            saved=self.is_saved,
        )

    def turn_infos(self, think_end: str | None) -> list[TurnInfo]:
        """The turns, as clients see them: a tool loop is one turn."""
        turns, names = self.chat.turns, turn_ids(self.chat.turns, think_end)
        infos = []
        for group in tool_loops(turns):
            loop = [turns[index] for index in group]
            infos.append(
                TurnInfo(
                    id=names[group[-1]],
                    chat=loop[0].conversation,
                    messages=loop_messages(loop),
                    remembered=loop[0].remembered,
                    write=loop[0].write,
                    changed=loop_changes(self.chat.state, group),
                    kept=loop_kept(loop),
                )
            )
        return infos


def told(error: Exception, path: Path) -> str:
    """The message of an error about a file, without the name of its folder, which is not for clients."""
    message = str(error)
    # Unlike Path.resolve, this takes a link that leads to itself.
    for place in (Path(os.path.realpath(path)), path):
        message = message.replace(str(place), place.name).replace(str(place.parent), "the folder of memories")
    return message
