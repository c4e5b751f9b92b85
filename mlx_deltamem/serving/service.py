"""`Service`: everything that the HTTP side can ask of the engine."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.exchange import Done, Piece, ReplyRequest, Revisions
from mlx_deltamem.sessions.text.messages import Message


@dataclass(frozen=True)
class MemoryInfo:
    """A memory, as clients see it.

    Attributes:
        name: Its name.
        revision: A text that is another one after each change of the memory. The ETag has it.
        turns: The number of turns, the remembered texts among them. A tool loop is one turn.
        tokens: The number of tokens in them.
        state_bytes: The size of the states.
        history, write: As in `ChatSession`.
        loaded: Whether it is in RAM.
        saved: Whether its file has all its turns.
    """

    name: str
    revision: str
    turns: int
    tokens: int
    state_bytes: int
    history: str | int
    write: str
    loaded: bool
    saved: bool = True


@dataclass(frozen=True)
class TurnInfo:
    """A turn of a memory. A tool loop is one turn.

    Attributes:
        id: Its id, for `ReplyRequest.continues`.
        chat: The chat that it is part of.
        messages: Its messages, and the reply; in a tool loop, the calls, the results and the last reply too.
        remembered: Whether it is a remembered text.
        write: Which part of it was written.
        changed: By layer, the norm of the change of the memory, divided by the larger norm. Empty if it is not known.
        kept: By layer, the mean of the keep gate over the tokens that were written as they were read. Likewise.
    """

    id: str
    chat: str
    messages: tuple[Message, ...]
    remembered: bool
    write: str
    changed: Mapping[int, float]
    kept: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """How the engine is.

    Attributes:
        stalled_seconds: The time since the generation thread last went round its loop while it had work; 0 if idle.
        active: The number of replies that are being generated.
        waiting: The number of requests that wait.
        accepting: Whether new requests are accepted; False while the server ends.
    """

    stalled_seconds: float
    active: int
    waiting: int
    accepting: bool


class Service(Protocol):
    """The engine, as the HTTP side uses it. All methods raise `RefusedError` with the status to answer with."""

    model_name: str
    # Reasoning and tool calls are found by its markers.
    tokenizer: TokenizerWrapper

    def reply(self, request: ReplyRequest) -> AsyncIterator[Piece | Done]:
        """Generate a reply. `Done` comes last. To close the iterator ends the reply within one step."""

    async def memories(self) -> Sequence[MemoryInfo]:
        """All memories, by name."""

    async def memory_names(self) -> Sequence[str]:
        """The names of all memories. No file is read."""

    async def memory(self, name: str) -> MemoryInfo:
        """One memory."""

    async def create(self, name: str, history: str | int | None, write: str | None) -> MemoryInfo:
        """Make an empty memory."""

    async def change(self, name: str, history: str | int | None, write: str | None, match: Revisions) -> MemoryInfo:
        """Change the settings of a memory. `match` has the revisions that it may have."""

    async def delete(self, name: str, match: Revisions) -> None:
        """Delete a memory and its file."""

    async def fork(self, name: str, new: str, match: Revisions) -> MemoryInfo:
        """Copy a memory under a new name."""

    async def reset(self, name: str, match: Revisions) -> MemoryInfo:
        """Empty a memory."""

    async def undo(self, name: str, match: Revisions) -> MemoryInfo:
        """Take the last turn back; a tool loop as a whole."""

    async def remember(self, name: str, messages: Sequence[Message], write: str, match: Revisions) -> MemoryInfo:
        """Write messages into the memory without a reply."""

    async def turns(self, name: str) -> Sequence[TurnInfo]:
        """The turns of a memory."""

    async def exported(self, name: str) -> bytes:
        """The session file of a memory."""

    async def imported(self, name: str, content: bytes, match: Revisions) -> MemoryInfo:
        """Make or replace a memory from a session file."""

    async def heatmap(self, name: str) -> Mapping[str, object]:
        """The states for drawing: `layers`, a list of `{layer, head, values}` with values `[r, r]`."""

    async def drift(self, name: str) -> Mapping[str, object]:
        """The change of the memory in each turn.

        Returns:
            `turns`, a list of `{id, chat, changed, kept}` with numbers by layer; and `borders`, the indices of the
            turns at which another chat begins.
        """

    def events(self, name: str) -> AsyncIterator[Mapping[str, object]]:
        """The events of a memory while a client listens: `token` (with β and state norms by layer) and `turn`."""

    def health(self) -> Health:
        """How the engine is, without waiting for it."""

    def metrics(self) -> str:
        """The figures in Prometheus' text form."""
