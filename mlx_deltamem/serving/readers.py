"""`Readers`: copies of a memory for chats that only read it, so that their earlier turns do not run again."""

from dataclasses import dataclass
from functools import cached_property, partial

from mlx_deltamem.serving.exchange import ReplyRequest
from mlx_deltamem.serving.shortened import within_window
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.place import Place, asked, deepest, path_ids, places
from mlx_deltamem.sessions.turns.seen import read_tokens
from mlx_deltamem.sessions.turns.snapshot import Snapshot
from mlx_deltamem.sessions.turns.turn import Turn, are_same_runs, said_turns

_MOST = 8
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Reader:
    """A copy of a memory.

    Attributes:
        base: The memory when the copy was made.
        chat: The copy. After the turns of the memory, it has those of one chat that only reads.
        tokens: The number of tokens that ran to make it.
    """

    base: Snapshot
    chat: ChatSession
    tokens: int = 0

    @property
    def own(self) -> list[Turn]:
        """The turns that the memory does not have."""
        return list(self.chat.turns[len(self.base.turns) :])

    @property
    def only_adds(self) -> bool:
        """Whether the copy has all turns of the memory. A request may have edited one of them in the copy."""
        return are_same_runs(self.chat.turns[: len(self.base.turns)], self.base.turns)

    @cached_property
    def places(self) -> dict[str, Place]:
        """As from `mlx_deltamem.sessions.turns.place.places`. A copy that is kept does not change."""
        return places(self.chat.turns, self.chat.tokenizer.think_end)

    @property
    def nbytes(self) -> int:
        """The bytes of its keys and values."""
        return self.chat.state.kept_bytes


class Readers:
    """The copies of one memory. The ones that were not used for the longest time are dropped.

    Attributes:
        nbytes: The bytes of all copies.
    """

    def __init__(self) -> None:
        # The last used one first.
        self._readers: list[Reader] = []
        self.nbytes = 0

    def knows(self, turn: str) -> bool:
        """Whether a copy has the turn with an id."""
        return any(turn in reader.places for reader in self._readers)

    def take(self, chat: ChatSession, now: Snapshot, request: ReplyRequest) -> Reader:
        """A copy of the memory for a request, which goes on with what an earlier request has read.

        If the memory has changed since then, the earlier turns run again, and read the memory of now.

        Args:
            chat: The chat of the memory, in which a turn may be under way.
            now: The memory before that turn.
            request: The request.
        """
        found = self._deepest(chat, now, request) if self._readers and request.text is None else None
        if found is None:
            return Reader(now, chat.fork_at(now))
        reader, place = found
        if reader.base.has_same_memory(now):
            if len(said_turns(reader.chat.turns, place.conversation)) > place.turns:
                # Another reply, or an edited message. The copy may go on from its end too.
                return Reader(now, reader.chat.fork())
            self._remove(reader)
            return Reader(now, reader.chat)
        self._remove(reader)
        again, tokens = chat.fork_at(now), 0
        again.state.enter(place.conversation)
        for turn in said_turns(reader.own, place.conversation):
            tokens += within_window(again, now.history, partial(_run_again, again, turn))
        if again.history != now.history:
            again.history = now.history
        return Reader(now, again, tokens)

    def put_back(self, reader: Reader) -> None:
        """Keep a copy for the next request of its chat."""
        if not reader.only_adds or not reader.own:
            return
        if not reader.chat.state.keeps_text:
            # They hold the text before one reply only.
            reader.chat.state.drop_caches()
        self._readers.insert(0, reader)
        self.nbytes += reader.nbytes
        while len(self._readers) > _MOST or self.nbytes > _MOST_BYTES:
            self._remove(self._readers[-1])

    def _deepest(self, chat: ChatSession, now: Snapshot, request: ReplyRequest) -> tuple[Reader, Place] | None:
        """The copy that knows most of a request's chat, with the place; None if the memory knows as much itself."""
        think_end: str | None = chat.tokenizer.think_end
        own = places(now.turns, think_end)
        if request.continues is not None:
            name = request.continues
            knowing = (reader for reader in self._readers if name in reader.places)
            return next(((reader, reader.places[name]) for reader in knowing if name not in own), None)
        path = path_ids(asked(request.messages).earlier, think_end)
        place, best = deepest(own, path), None
        for reader in self._readers:
            there = deepest(reader.places, path)
            if there is not None and (place is None or there.turns > place.turns):
                place, best = there, reader
        return None if best is None or place is None else (best, place)

    def _remove(self, reader: Reader) -> None:
        self._readers = [each for each in self._readers if each is not reader]
        self.nbytes = sum(each.nbytes for each in self._readers)


def _run_again(chat: ChatSession, turn: Turn) -> int:
    """Run a turn again; returns the number of tokens that ran for it, those of earlier text among them."""
    tokens = read_tokens(chat.state, turn) + turn.length
    running.run_again(chat.state, turn)
    return tokens
