"""`LocalService`: the engine in this process, for the HTTP side."""

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.calls import EngineCalls, soon
from mlx_deltamem.serving.engine import Engine
from mlx_deltamem.serving.exchange import Done, Piece, RefusedError, ReplyRequest, Revisions
from mlx_deltamem.serving.memories import DAMAGED
from mlx_deltamem.serving.operations import Operations
from mlx_deltamem.serving.reply_job import Outlet, ReplyJob
from mlx_deltamem.serving.service import Health, MemoryInfo, TurnInfo
from mlx_deltamem.serving.special_tokens import special_tokens, without_special_tokens
from mlx_deltamem.serving.watching import Event
from mlx_deltamem.sessions.text.messages import Message

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
        self._numbers = itertools.count()
        self._streams: set[asyncio.Queue[Event | None]] = set()

    def end_events(self) -> None:
        """End the streams of events. The event loop's thread calls it when the server ends."""
        for events in self._streams:
            events.put_nowait(None)

    def fail_all(self, error: RefusedError) -> None:
        """Answer all clients that wait for the engine with an error. Any thread may call it."""
        self._calls.fail_all(error)

    async def reply(self, request: ReplyRequest) -> AsyncIterator[Piece | Done]:
        """Generate a reply."""
        messages = tuple(without_special_tokens(message, self._special) for message in request.messages)
        outlet = Outlet()
        has_received = False
        number = self._engine.inbox.submit(ReplyJob(replace(request, messages=messages), outlet))
        with self._calls.waiting(outlet.put):
            try:
                while True:
                    item = await outlet.get()
                    yield item
                    # The reader asks for more when it has sent what it got.
                    has_received = True
                    if isinstance(item, Done):
                        return
            finally:
                self._engine.inbox.leave(number, has_received)

    async def memories(self) -> Sequence[MemoryInfo]:
        """All memories, by name."""
        return await self._calls.run(Operations.infos)

    async def memory_names(self) -> Sequence[str]:
        """The names of all memories. No file is read."""
        return await self._calls.run(Operations.names)

    async def memory(self, name: str) -> MemoryInfo:
        """One memory."""
        return await self._calls.run(Operations.info, name)

    async def create(self, name: str, history: str | int | None, write: str | None) -> MemoryInfo:
        """Make an empty memory."""
        return await self._calls.run(Operations.create, name, history, write)

    async def change(self, name: str, history: str | int | None, write: str | None, match: Revisions) -> MemoryInfo:
        """Change the settings of a memory."""
        return await self._calls.run(Operations.change, name, history, write, match)

    async def delete(self, name: str, match: Revisions) -> None:
        """Delete a memory and its file. A damaged file can be deleted too."""
        try:
            await self._calls.run(Operations.delete, name, match)
        except RefusedError as error:
            if error.code != DAMAGED or match is not None:
                raise
            await self._calls.run(Operations.delete_damaged, name)

    async def fork(self, name: str, new: str, match: Revisions) -> MemoryInfo:
        """Copy a memory under a new name."""
        return await self._calls.run(Operations.fork, name, new, match)

    async def reset(self, name: str, match: Revisions) -> MemoryInfo:
        """Empty a memory."""
        return await self._calls.run(Operations.reset, name, match)

    async def undo(self, name: str, match: Revisions) -> MemoryInfo:
        """Take the last turn back; a tool loop as a whole."""
        return await self._calls.run(Operations.undo, name, match)

    async def remember(self, name: str, messages: Sequence[Message], write: str, match: Revisions) -> MemoryInfo:
        """Write messages into the memory without a reply. Other requests go on meanwhile."""
        return await self._calls.run(Operations.remember, name, messages, write, match)

    async def turns(self, name: str) -> Sequence[TurnInfo]:
        """The turns of a memory."""
        return await self._calls.run(Operations.turns, name)

    async def exported(self, name: str) -> bytes:
        """The session file of a memory."""
        return await self._calls.run(Operations.exported, name)

    async def imported(self, name: str, content: bytes, match: Revisions) -> MemoryInfo:
        """Make or replace a memory from a session file."""
        return await self._calls.run(Operations.imported, name, base64.b64encode(content).decode(), match)

    async def heatmap(self, name: str) -> Mapping[str, object]:
        """The states for drawing."""
        return await self._calls.run(Operations.heatmap, name)

    async def drift(self, name: str) -> Mapping[str, object]:
        """The change of the memory in each turn."""
        return await self._calls.run(Operations.drift, name)

    async def events(self, name: str) -> AsyncIterator[Mapping[str, object]]:
        """The events of a memory while a client listens."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def listener(event: Event) -> None:
            # A client that reads too slowly loses tokens, and no turns.
            if event["event"] != "token" or events.qsize() < _MOST_EVENTS:
                soon(loop, lambda: events.put_nowait(event))

        number, listeners = next(self._numbers), self._engine.operations.listeners
        listeners[number] = listener
        self._streams.add(events)
        try:
            await self._calls.run(Operations.listen, name, number)
            while (event := await events.get()) is not None:
                yield event
                if event["event"] == "deleted":
                    return
        finally:
            self._streams.discard(events)
            del listeners[number]
            self._engine.inbox.tell(Operations.end_listening, lambda work: work(), number)

    def health(self) -> Health:
        """How the engine is."""
        engine = self._engine
        return Health(engine.stalled_seconds, engine.active, engine.waiting, engine.inbox.is_accepting)

    def metrics(self) -> str:
        """The figures in Prometheus' text form."""
        engine = self._engine
        total = sum(memory.counted for memory in engine.memories.loaded())
        return engine.metrics.text(engine.active, engine.waiting, total, engine.unsaved)
