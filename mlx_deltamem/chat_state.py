"""The state of a chat: its turns, and the prompt cache they led to, which can go back to any of their borders."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.attention import Observer
from mlx_deltamem.cache import MemoryLayout, PromptCache
from mlx_deltamem.drift import Drift, changes
from mlx_deltamem.history import NONE, History, Mark, go_back, make_chat_cache, mark
from mlx_deltamem.reads import Reads
from mlx_deltamem.runner import Progress, read
from mlx_deltamem.segments import Segments
from mlx_deltamem.turn import Border, States, Turn, part
from mlx_deltamem.use import observing


class ChatState:
    """The turns of a chat and the prompt cache after the last of them.

    The turns are the truth. The cache can be made from them at any time by running their tokens again; it is made when
    it is needed, and dropped where going back in it is not possible.

    Args:
        model: An attached model.
        history: What of the text is kept.
        turns: The turns so far.
        states: The memory after them; None: as running them gives it.
    """

    def __init__(self, model: nn.Module, history: History, turns: Sequence[Turn] = (), states: States | None = None):
        self.model = model
        self.history = history
        self.turns: list[Turn] = list(turns)
        self._states = states
        self._cache: PromptCache | None = None
        # The border before a turn that is under way.
        self._begun_at: Border | None = None
        # With history `none`, where every turn begins: after the system prompt.
        self._start: Mark | None = None

    @property
    def states(self) -> States:
        """The memory after the last turn, by layer index."""
        if self._cache is None and self._states is None and self.turns:
            self._make_cache(self.turns[0].opening)
        if self._cache is not None:
            return list(self._cache[-1].cache)
        if self._states is not None:
            return self._states
        layout: MemoryLayout = self.model.memory_layout
        return [mx.zeros((1, *shape)) for shape in layout.shapes]

    @property
    def writes_tokens(self) -> bool:
        """Whether the adapter writes single tokens rather than means."""
        return self.model.attachment.config.memory_write_granularity == "token"

    @property
    def cache(self) -> PromptCache | None:
        """The prompt cache after the last turn; None where it is yet to be made."""
        return self._cache

    def restore_cache(self, cache: PromptCache) -> None:
        """Take over the prompt cache that the turns led to."""
        self._cache = cache

    def fork(self) -> "ChatState":
        """A second state that shares nothing that either could change."""
        other = ChatState(self.model, self.history, self.turns, self._states)
        # Arrays share their numbers until one side writes.
        other._cache, other._start = copy.deepcopy(self._cache), self._start
        return other

    def begin(self, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE, progress: Progress | None = None) -> Turn:
        """Run a turn's message.

        Returns:
            The turn with its borders, the model's logits, and the kept share of the memory in its drift.
        """
        cache = self._cache if self._cache is not None else self._make_cache((self.turns or [turn])[0].opening)
        opening = turn.opening
        if self._start is not None:
            go_back(cache, self._start)
        before = self._begun_at = self._border()
        if self.history == NONE and self._start is None:
            opening = self._read_start(opening, turn.writing)
        gates: dict[int, list[mx.array]] = {}
        with observing(self.model, _gate_collector(gates)):
            logits = read(self.model, cache, opening, turn.writing, step, progress)
        drift = Drift(_means(gates) or {layer: 1.0 for layer, state in enumerate(self.states) if state.size}, {})
        return replace(turn, before=before, between=self._border(), logits=logits, drift=drift)

    def finish(self, turn: Turn, reply: Segments | None = None, ending: Segments | None = None) -> None:
        """End a turn that was begun and add it to the chat.

        Args:
            turn: The turn with its reply.
            reply: The tokens of the reply that are yet to be run.
            ending: Those of its ending; default: all of them.
        """
        for segments in (reply, turn.ending if ending is None else ending):
            if segments is not None and segments.ids:
                read(self.model, self._cache, segments, turn.writing, want_logits=False)
        moved = changes(turn.before.states, self.states)
        if self.turns:
            self.turns[-1] = self.turns[-1].as_earlier()
        self.turns.append(replace(turn, drift=replace(turn.drift, changed=moved)))
        self._states = self.states

    def run_again(self, turn: Turn) -> None:
        """Run a turn as it was, or as it was changed, on what the chat is now."""
        self.finish_again(self.begin(turn))

    def finish_again(self, turn: Turn) -> None:
        """Run the reply of a turn whose message has just been run, and add the turn to the chat."""
        unread = [-1] * len(turn.reply_ids)
        self.finish(turn, reply=Segments(list(turn.reply_ids), unread, unread))

    def run_reply_again(self, turn: Turn) -> None:
        """Take a turn that is under way back to where its reply begins, and run its tokens from there."""
        self._go_to(turn.between)
        self.finish_again(turn)

    def return_to_reply(self, index: int) -> bool:
        """Take the reply of turn `index` and all later turns back; False, and nothing done, where that cannot be."""
        # With history `none`, the text in the cache is that of the last turn.
        reachable = self.history != NONE or index == len(self.turns) - 1
        if not reachable or not self._go_to(self.turns[index].between):
            return False
        self.turns = self.turns[:index]
        return True

    def _go_to(self, border: Border | None) -> bool:
        """Take the cache back to a border whose text it holds; False where that cannot be done."""
        if border is None or self._cache is None or not go_back(self._cache, border.text):
            return False
        self._cache[-1].cache = list(border.states)
        return True

    def return_to(self, index: int) -> None:
        """Take turn `index` and all later ones back."""
        turns = self.turns
        # Where a file did not keep the border, what follows from the one before it is run again.
        kept = next(i for i in range(index, -1, -1) if i == 0 or turns[i].before is not None)
        self._cut(kept)
        for turn in turns[kept:index]:
            self.run_again(turn)

    def _cut(self, index: int) -> None:
        """Take turns back to a border that was kept, or to the beginning."""
        border = self.turns[index].before
        self.turns = self.turns[:index]
        if index == 0:
            self.drop_cache(None)
            return
        if self._start is not None:
            # Every turn begins at the start, so the place of this one's text does not matter.
            border = replace(border, text=self._start)
        if self._go_to(border):
            self._states = border.states
        else:
            self.drop_cache(border.states)

    @contextmanager
    def turn_or_nothing(self) -> Iterator[None]:
        """A turn that leaves no trace where it fails before it is added to the chat."""
        count, states = len(self.turns), self.states
        try:
            yield
        except BaseException:
            if len(self.turns) == count and not self._go_to(self._begun_at):
                self.drop_cache(states)
            raise
        finally:
            self._begun_at = None

    def drop_cache(self, states: States | None) -> None:
        """Have the cache made again when it is needed; `states` is the memory, None: as running the turns gives it."""
        self._cache, self._start, self._states = None, None, states

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """A change of the chat that leaves it as it was if it fails; a reply that is closed early has not failed."""
        return self._or_else(list(self.turns), self.states)

    @contextmanager
    def _or_else(self, turns: list[Turn], states: States | None) -> Iterator[None]:
        """Within it, an error leaves the chat with these turns and this memory."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.turns = turns
            self.drop_cache(states)
            raise

    def _make_cache(self, first: Segments) -> PromptCache:
        """Make the cache that the turns led to; `first` is the opening of the first turn."""
        turns, states = self.turns, self._states
        self._cache = make_chat_cache(self.model, self.history, _system_tokens(first))
        with self._or_else(turns, states):
            self._run_turns(turns, states)
        return self._cache

    def _run_turns(self, turns: list[Turn], states: States | None) -> None:
        """Fill an empty cache with what the turns left in it; `states` is the memory they led to, if that is known."""
        if self.history == NONE and turns and states is not None:
            # No text of the turns is in the cache, only the system prompt.
            self._read_start(turns[0].opening, turns[0].writing)
        else:
            self.turns = []
            for turn in turns:
                self.run_again(turn)
        if states is not None:
            self._cache[-1].cache = list(states)

    def _read_start(self, opening: Segments, writing: bool) -> Segments:
        """Run the system prompt and mark where it ends; returns what is left of the opening."""
        count = _system_tokens(opening)
        if count:
            # Adapters that write means write no system prompt, and would write it token by token were it alone.
            system = part(opening, slice(0, count))
            read(self.model, self._cache, system, writing and self.writes_tokens, want_logits=False)
        self._start = mark(self._cache)
        return part(opening, slice(count, None))

    def _border(self) -> Border:
        return Border(list(self._cache[-1].cache), mark(self._cache))


def _gate_collector(gates: dict[int, list[mx.array]]) -> Observer:
    """Notes the keep gates of every pass by layer."""

    def note(layer: int, reads: Reads, _: mx.array) -> None:
        if reads.written:
            gates.setdefault(layer, []).append(reads.gates.keep)

    return note


def _means(gates: dict[int, list[mx.array]]) -> dict[int, float]:
    """The mean over all parts of each layer, evaluated together."""
    if not gates:
        return {}
    means = [sum(part.sum() for part in parts) / sum(part.size for part in parts) for parts in gates.values()]
    return dict(zip(gates, mx.stack(means).tolist(), strict=True))


def _system_tokens(opening: Segments) -> int:
    """How many tokens come before a chat's first message: the system prompt's."""
    return next((i for i, index in enumerate(opening.message_ids) if index >= 0), 0)
