"""`Operations`: what can be done to memories beside replies. Each is a name and JSON values, which ranks can send."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeAlias, TypeVar

from mlx_deltamem.serving.asking import take_back_up_to
from mlx_deltamem.serving.exchange import RefusedError, Revisions
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.reply_turn import PREFILL_STEP
from mlx_deltamem.serving.service import MemoryInfo, TurnInfo
from mlx_deltamem.serving.watching import Event, states
from mlx_deltamem.serving.work import held, when_free
from mlx_deltamem.sessions.changing.loops import tool_loops
from mlx_deltamem.sessions.text.messages import Message

_Result = TypeVar("_Result")
# Runs a function, and gives its result or its error to whoever has asked for it.
Settle: TypeAlias = Callable[[Callable[[], _Result]], None]
Listener: TypeAlias = Callable[[Event], None]


class Operations:
    """Operations on memories. The engine's thread calls them.

    The first argument of each takes its result, now or when the memory is free. The others have a form that JSON has.

    Args:
        memories: The memories.
        think_end: The text that ends the reasoning of a reply, or None.
        replay_limit: The largest number of tokens that run again when a turn below other chats is taken back.
        others_go_on: Called between two parts of long work, with the numbers of tokens that are done, and of all.

    Attributes:
        listeners: By number, those who listen to the events of memories. Ranks without clients have none.
    """

    def __init__(
        self,
        memories: Memories,
        think_end: str | None,
        replay_limit: int,
        others_go_on: Callable[[int, int], None],
    ):
        self.listeners: dict[int, Listener] = {}
        self._memories = memories
        self._think_end = think_end
        self._replay_limit = replay_limit
        self._others_go_on = others_go_on
        self._heard: dict[int, tuple[Memory, Listener]] = {}

    def infos(self, settle: Settle[Sequence[MemoryInfo]]) -> None:
        """All memories, by name."""
        settle(lambda: self._memories.infos(self._others_go_on))

    def names(self, settle: Settle[Sequence[str]]) -> None:
        """The names of all memories. No file is read."""
        settle(self._memories.all_names)

    def info(self, settle: Settle[MemoryInfo], name: str) -> None:
        """One memory."""
        settle(lambda: self._memories.get(name).info())

    def create(self, settle: Settle[MemoryInfo], name: str, history: str | int | None, write: str | None) -> None:
        """Make an empty memory."""
        settle(lambda: self._memories.create(name, history, write).info())

    def change(
        self, settle: Settle[MemoryInfo], name: str, history: str | int | None, write: str | None, match: Revisions
    ) -> None:
        """Change the settings of a memory."""

        def change(memory: Memory) -> None:
            if history is not None:
                memory.chat.history = history
            if write is not None:
                memory.chat.write = write

        self._changed(settle, name, match, change)

    def delete(self, settle: Settle[None], name: str, match: Revisions) -> None:
        """Delete a memory and its file."""

        def delete(memory: Memory) -> None:
            memory.check(match)
            self._memories.delete(memory)

        self._on(settle, name, delete)

    def delete_damaged(self, settle: Settle[None], name: str) -> None:
        """Delete the file of a memory that cannot be loaded."""
        settle(lambda: self._memories.delete_damaged(name))

    def fork(self, settle: Settle[MemoryInfo], name: str, new: str, match: Revisions) -> None:
        """Copy a memory under a new name."""

        def fork(memory: Memory) -> MemoryInfo:
            memory.check(match)
            return self._memories.fork(memory, new).info()

        self._on(settle, name, fork)

    def reset(self, settle: Settle[MemoryInfo], name: str, match: Revisions) -> None:
        """Empty a memory."""
        self._changed(settle, name, match, lambda memory: memory.chat.reset())

    def undo(self, settle: Settle[MemoryInfo], name: str, match: Revisions) -> None:
        """Take the last turn back; a tool loop as a whole."""

        def undo(memory: Memory) -> None:
            if not memory.chat.turns:
                raise RefusedError(409, "nothing_to_undo", f"memory {name} has no turn to take back")
            take_back_up_to(memory.chat, tool_loops(memory.chat.turns)[-1], self._replay_limit)

        self._changed(settle, name, match, undo)

    def remember(
        self, settle: Settle[MemoryInfo], name: str, messages: Sequence[Message], write: str, match: Revisions
    ) -> None:
        """Write messages into a memory without a reply. Other requests go on meanwhile."""

        def remember(memory: Memory) -> None:
            with held(memory):
                memory.chat.remember(list(messages), write, PREFILL_STEP, self._others_go_on)

        self._changed(settle, name, match, remember, make=True)

    def turns(self, settle: Settle[Sequence[TurnInfo]], name: str) -> None:
        """The turns of a memory."""
        settle(lambda: self._memories.get(name).turn_infos(self._think_end))

    def exported(self, settle: Settle[bytes], name: str) -> None:
        """The session file of a memory."""
        self._on(settle, name, self._memories.exported)

    def imported(self, settle: Settle[MemoryInfo], name: str, content: str, match: Revisions) -> None:
        """Make or replace a memory from a session file, which is given in base 64."""

        def replace() -> MemoryInfo:
            if match is not None:
                self._memories.existing(name).check(match)
            memory = self._memories.loaded_one(name)
            if memory is not None and memory.is_busy:
                raise RefusedError(409, "memory_busy", f"a turn of memory {name} is under way; try again later")
            return self._memories.replace(name, base64.b64decode(content)).info()

        settle(replace)

    def heatmap(self, settle: Settle[Mapping[str, object]], name: str) -> None:
        """The states for drawing."""
        settle(lambda: {"layers": states(self._memories.get(name).chat.memory)["heat"]})

    def drift(self, settle: Settle[Mapping[str, object]], name: str) -> None:
        """The change of the memory in each turn."""

        def drift() -> Mapping[str, object]:
            infos = self._memories.get(name).turn_infos(self._think_end)
            turns = [
                {
                    "id": info.id,
                    "chat": info.chat,
                    "changed": {str(layer): value for layer, value in info.changed.items()},
                    "kept": {str(layer): value for layer, value in info.kept.items()},
                }
                for info in infos
            ]
            chats = [info.chat for info in infos]
            borders = [index for index in range(1, len(chats)) if chats[index] != chats[index - 1]]
            return {"turns": turns, "borders": borders}

        settle(drift)

    def listen(self, settle: Settle[None], name: str, number: int) -> None:
        """Let the listener of a number hear the events of a memory. In ranks without it, the same work is done."""

        def listen() -> None:
            memory, listener = self._memories.get(name), self.listeners.get(number, _unheard)
            memory.listeners.append(listener)
            self._heard[number] = memory, listener

        settle(listen)

    def end_listening(self, settle: Settle[None], number: int) -> None:
        """Let a listener hear no more events. Nothing happens if it hears none."""
        memory, listener = self._heard.pop(number, (None, _unheard))
        if memory is not None:
            memory.listeners.remove(listener)
        settle(lambda: None)

    def _on(self, settle: Settle[_Result], name: str, work: Callable[[Memory], _Result], make: bool = False) -> None:
        """Run a function on a memory when no turn of it is under way.

        Args:
            settle: Takes its result, or the error if the memory cannot be used.
            name: The name of the memory.
            work: The function.
            make: Make an empty memory if there is none.
        """
        try:
            memory = self._memories.get(name, make)
        except (RefusedError, OSError) as failure:
            # Python unbinds the name of an exception at the end of its block.
            error = failure
            settle(lambda: _fail(error))
        else:
            when_free(memory, lambda: settle(lambda: work(memory)), lambda: self._on(settle, name, work, make))

    def _changed(
        self,
        settle: Settle[MemoryInfo],
        name: str,
        match: Revisions,
        change: Callable[[Memory], None],
        make: bool = False,
    ) -> None:
        """Change a memory and save it. After an error it is as before."""

        def work(memory: Memory) -> MemoryInfo:
            if match is not None:
                self._memories.existing(name).check(match)
            state = memory.chat.state
            before, write = state.snapshot(), memory.chat.write
            try:
                change(memory)
                memory.save()
            except BaseException:
                memory.chat.state.restore(before)
                memory.chat.write = write
                raise
            memory.changed()
            return memory.info()

        self._on(settle, name, work, make)


def _fail(error: RefusedError | OSError) -> NoReturn:
    raise error


def _unheard(_: Event) -> None:
    """Listen in a rank that has no clients."""
