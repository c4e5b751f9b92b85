"""`LocalService`: the engine in this process, for the HTTP side."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.asking import take_back_up_to
from mlx_deltamem.serving.calls import EngineCalls, soon
from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import Done, Piece, RefusedError, ReplyRequest
from mlx_deltamem.serving.memories import DAMAGED
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.reply_job import Outlet, ReplyJob
from mlx_deltamem.serving.reply_turn import PREFILL_STEP
from mlx_deltamem.serving.service import Health, MemoryInfo, TurnInfo
from mlx_deltamem.serving.special_tokens import special_tokens, without_special_tokens
from mlx_deltamem.serving.watching import Event, states
from mlx_deltamem.serving.work import held
from mlx_deltamem.sessions.loops import tool_loops
from mlx_deltamem.sessions.messages import Message

_MOST_EVENTS = 200


class LocalService:
    """The engine in this process. See `Service` for the methods.

    Args:
        engine: The engine.
        model_name: The name of the model, as clients give it.
    """

    def __init__(self, engine: Engine, model_name: str):
        self.model_name = model_name
        self.tokenizer: TokenizerWrapper = engine.tokenizer
        self._engine = engine
        self._special = special_tokens(self.tokenizer)
        self._calls = EngineCalls(engine)

    def fail_all(self, error: RefusedError) -> None:
        """Answer all clients that wait for the engine with an error. Any thread may call it."""
        self._calls.fail_all(error)

    async def reply(self, request: ReplyRequest) -> AsyncIterator[Piece | Done]:
        """Generate a reply."""
        messages = tuple(without_special_tokens(message, self._special) for message in request.messages)
        outlet = Outlet()
        self._engine.submit(ReplyJob(replace(request, messages=messages), outlet))
        with self._calls.waiting(outlet.put):
            try:
                while True:
                    item = await outlet.get()
                    yield item
                    if isinstance(item, Done):
                        return
            finally:
                outlet.is_closed = True

    async def memories(self) -> Sequence[MemoryInfo]:
        """All memories, by name."""
        return await self._calls.run(self._engine.memories.infos)

    async def memory(self, name: str) -> MemoryInfo:
        """One memory."""
        return await self._calls.run(lambda: self._get(name).info())

    async def create(self, name: str, history: str | int | None, write: str | None) -> MemoryInfo:
        """Make an empty memory."""
        return await self._calls.run(lambda: self._engine.memories.create(name, history, write).info())

    async def change(self, name: str, history: str | int | None, write: str | None, match: str | None) -> MemoryInfo:
        """Change the settings of a memory."""

        def change(memory: Memory) -> None:
            if history is not None:
                memory.chat.history = history
            if write is not None:
                memory.chat.write = write

        return await self._changed(name, match, change)

    async def delete(self, name: str, match: str | None) -> None:
        """Delete a memory and its file. A damaged file can be deleted too."""

        def delete(memory: Memory) -> None:
            memory.check(match)
            self._engine.memories.delete(memory)

        try:
            await self._calls.run_on(name, delete)
        except RefusedError as error:
            if error.code != DAMAGED or match is not None:
                raise
            await self._calls.run(lambda: self._engine.memories.delete_damaged(name))

    async def fork(self, name: str, new: str) -> MemoryInfo:
        """Copy a memory under a new name."""
        return await self._calls.run_on(name, lambda memory: self._engine.memories.fork(memory, new).info())

    async def reset(self, name: str, match: str | None) -> MemoryInfo:
        """Empty a memory."""
        return await self._changed(name, match, lambda memory: memory.chat.reset())

    async def undo(self, name: str, match: str | None) -> MemoryInfo:
        """Take the last turn back; a tool loop as a whole."""

        def undo(memory: Memory) -> None:
            if not memory.chat.turns:
                raise RefusedError(409, "nothing_to_undo", f"memory {name} has no turn to take back")
            take_back_up_to(memory.chat, tool_loops(memory.chat.turns)[-1], self._engine.replay_limit)

        return await self._changed(name, match, undo)

    async def remember(self, name: str, messages: Sequence[Message], write: str, match: str | None) -> MemoryInfo:
        """Write messages into the memory without a reply. Other requests go on meanwhile."""
        engine = self._engine

        def remember(memory: Memory) -> None:
            with held(memory):
                memory.chat.remember(list(messages), write, PREFILL_STEP, engine.others_go_on)

        return await self._changed(name, match, remember, make=True)

    async def turns(self, name: str) -> Sequence[TurnInfo]:
        """The turns of a memory."""
        return await self._calls.run(lambda: self._get(name).turn_infos(self.tokenizer.think_end))

    async def exported(self, name: str) -> bytes:
        """The session file of a memory."""

        def exported(memory: Memory) -> bytes:
            if memory.path is None:
                raise RuntimeError("a private memory has no file")
            if memory.is_unsaved or not memory.path.exists():
                memory.save()
            return memory.path.read_bytes()

        return await self._calls.run_on(name, exported)

    async def imported(self, name: str, content: bytes) -> MemoryInfo:
        """Make or replace a memory from a session file."""

        def replace() -> MemoryInfo:
            memory = self._engine.memories.loaded_one(name)
            if memory is not None and memory.is_busy:
                raise RefusedError(409, "memory_busy", f"a turn of memory {name} is under way; try again later")
            return self._engine.memories.replace(name, content).info()

        return await self._calls.run(replace)

    async def heatmap(self, name: str) -> Mapping[str, object]:
        """The states for drawing."""

        def heatmap() -> Mapping[str, object]:
            return {"layers": states(self._get(name).chat.memory)["heat"]}

        return await self._calls.run(heatmap)

    async def drift(self, name: str) -> Mapping[str, object]:
        """The change of the memory in each turn."""

        def drift() -> Mapping[str, object]:
            memory = self._get(name)
            infos = memory.turn_infos(self.tokenizer.think_end)
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

        return await self._calls.run(drift)

    async def events(self, name: str) -> AsyncIterator[Mapping[str, object]]:
        """The events of a memory while a client listens."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def listener(event: Event) -> None:
            # A client that reads too slowly loses tokens, and no turns.
            if event["event"] == "turn" or events.qsize() < _MOST_EVENTS:
                soon(loop, lambda: events.put_nowait(event))

        memory = await self._calls.run(lambda: self._listened(name, listener))
        try:
            while True:
                yield await events.get()
        finally:
            memory.listeners.remove(listener)

    def health(self) -> Health:
        """How the engine is."""
        engine = self._engine
        return Health(engine.stalled_seconds, engine.active, engine.waiting, engine.is_accepting)

    def metrics(self) -> str:
        """The figures in Prometheus' text form."""
        engine = self._engine
        total = sum(memory.counted for memory in engine.memories.loaded())
        return engine.metrics.text(engine.active, engine.waiting, total, engine.unsaved)

    def _listened(self, name: str, listener: Callable[[Event], None]) -> Memory:
        memory = self._get(name)
        memory.listeners.append(listener)
        return memory

    def _get(self, name: str) -> Memory:
        return self._engine.memories.get(name)

    async def _changed(
        self, name: str, match: str | None, change: Callable[[Memory], None], make: bool = False
    ) -> MemoryInfo:
        """Change a memory and save it. After an error it is as before."""

        def work(memory: Memory) -> MemoryInfo:
            memory.check(match)
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

        return await self._calls.run_on(name, work, make)
