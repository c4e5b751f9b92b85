"""The state of a chat: its turns, the memory they led to, and the text that the model sees beside it."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.core.cache import MemoryLayout, PromptCache, make_prompt_cache
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.drift import Drift, changes
from mlx_deltamem.sessions.history import FULL, History, go_back, mark
from mlx_deltamem.sessions.read import Progress, read, window, write_text
from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.sessions.turn import NO_SEGMENTS, Border, States, Turn
from mlx_deltamem.sessions.visible import seen_before


class ChatState:
    """The turns of a chat, the memory after the last of them, and a prompt cache.

    The turns are the truth. With history `full` the cache holds the text of all of them; it is made by running their
    tokens again where there is none, and dropped where it cannot go back. With any other history each turn makes a
    cache of its own: the visible start and the last tokens are read anew, with the memory of now.

    Args:
        model: An attached model.
        history: What the model sees of earlier turns.
        turns: The turns so far.
        states: The memory after them, by layer index; None: an empty one.
    """

    def __init__(self, model: nn.Module, history: History, turns: Sequence[Turn] = (), states: States | None = None):
        self.model = model
        self.turns: list[Turn] = list(turns)
        self.memory_set = False
        self._history = history
        self._states = self._empty() if states is None else list(states)
        self._cache: PromptCache | None = None
        # The border before a turn that is under way.
        self._begun_at: Border | None = None

    @property
    def history(self) -> History:
        return self._history

    @history.setter
    def history(self, history: History) -> None:
        self._history, self._cache = history, None

    @property
    def states(self) -> States:
        """The memory after the last turn, by layer index."""
        return list(self._states)

    @property
    def cache(self) -> PromptCache | None:
        """The prompt cache after the last turn, or of the turn under way; None where it is yet to be made."""
        return self._cache

    @property
    def writes_tokens(self) -> bool:
        """Whether the adapter writes single tokens rather than means."""
        return self.model.attachment.config.memory_write_granularity == "token"

    def restore_text(self, text: PromptCache) -> None:
        """Take over the keys and values that the turns led to."""
        self._cache = [*text, make_prompt_cache(self.model)[-1]]
        self._cache[-1].cache = self.states

    def set_memory(self, states: States) -> None:
        """Go on from this memory; the turn that comes next keeps that it was set."""
        self._states, self.memory_set = list(states), True
        if self._cache is not None:
            self._cache[-1].cache = list(states)

    def fork(self) -> "ChatState":
        """A second state that shares nothing that either could change."""
        other = ChatState(self.model, self._history, self.turns, self._states)
        # Arrays share their numbers until one side writes.
        other._cache, other.memory_set = copy.deepcopy(self._cache), self.memory_set
        return other

    def check_fits(self, turn: Turn) -> None:
        """Check that a turn's messages and what is seen before them fit into the model's window.

        Raises:
            ValueError: They do not.
        """
        self._check_fits("message", len(turn.opening.ids), turn, self.turns)

    def check_fits_edited(self, index: int, turn: Turn) -> None:
        """Check that turn `index` with another reply, and what is seen before it, fit into the model's window.

        Raises:
            ValueError: They do not.
        """
        self._check_fits("message with its reply", turn.length, turn, self.turns[:index])

    def _check_fits(self, what: str, tokens: int, turn: Turn, earlier: Sequence[Turn]) -> None:
        longest = window(self.model)
        if self._history == FULL:
            seen = sum(each.length for each in earlier if not each.remembered)
        else:
            seen = len(seen_before(turn, earlier, self._history).ids)
        if longest is not None and seen + tokens > longest:
            raise ValueError(
                f"the {what} is {tokens} tokens on top of {seen} in view; the model's window is {longest}: "
                "shorten it, or use a history of fewer tokens"
            )

    def begin(self, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE, progress: Progress | None = None) -> Turn:
        """Run a turn's messages.

        Returns:
            The turn with its borders, the model's logits, and the kept share of the memory in its drift.

        Raises:
            ValueError: They do not fit into the model's window.
        """
        self.check_fits(turn)
        turn, cache = self._placed(turn, step)
        with observing(self.model, collector := _KeepGates()):
            logits = read(self.model, cache, turn.opening, turn.opening_written, step, progress)
        return replace(turn, between=self._border(), logits=logits, drift=self._drift(collector))

    def finish(self, turn: Turn, reply: Segments | None = None, ending: Segments | None = None) -> None:
        """End a turn that was begun and add it to the chat.

        Args:
            turn: The turn with its reply.
            reply: The tokens of the reply that are yet to be run.
            ending: Those of its ending; default: all of them.
        """
        if turn.is_written_when_ended:
            self._write_ended(turn)
            return
        for segments in (reply, turn.ending if ending is None else ending):
            if segments is not None and segments.ids:
                read(self.model, self._cache, segments, turn.reply_written, want_logits=False)
        self._add(turn, list(self._cache[-1].cache))

    def remember(self, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE, progress: Progress | None = None) -> None:
        """Write a text into the memory and add it as a turn without a reply; the model's text stays as it is."""
        turn = self._with_border(turn)
        with observing(self.model, collector := _KeepGates()):
            told = collector.then(progress)
            states = write_text(self.model, self._states, turn.opening, turn.opening_written, step=step, progress=told)
        self._add(replace(turn, drift=self._drift(collector)), states)
        if self._cache is not None:
            self._cache[-1].cache = list(states)

    def run_again(self, turn: Turn) -> None:
        """Run a turn as it was, or as it was changed, on what the chat is now."""
        if turn.memory_set:
            self.set_memory(turn.before.states)
        if turn.remembered:
            self.remember(turn)
        elif turn.is_written_when_ended:
            self.check_fits(turn)
            self._write_ended(self._placed(turn)[0])
        else:
            self.finish_again(self.begin(turn))

    def finish_again(self, turn: Turn) -> None:
        """Run the reply of a turn whose messages have just been run, and add the turn to the chat."""
        unread = [-1] * len(turn.reply_ids)
        self.finish(turn, reply=Segments(list(turn.reply_ids), unread, unread))

    def run_reply_again(self, turn: Turn) -> None:
        """Take a turn that is under way back to where its reply begins, and run its tokens from there."""
        self._go_to(turn.between)
        self.finish_again(turn)

    def return_to_reply(self, index: int) -> bool:
        """Take the reply of turn `index` and all later turns back; False, and nothing done, where that cannot be."""
        turn = self.turns[index]
        # Without the whole text, the cache is that of the last turn.
        reachable = not turn.remembered and (self._history == FULL or index == len(self.turns) - 1)
        if not reachable or not self._go_to(turn.between):
            return False
        self._take_back(index)
        return True

    def return_to(self, index: int) -> None:
        """Take turn `index` and all later ones back."""
        turns = self.turns
        # Where a file did not keep the border, what follows from the one before it is run again.
        kept = next(i for i in range(index, -1, -1) if i == 0 or turns[i].before is not None)
        border = turns[kept].before
        states = self._empty() if border is None else border.states
        self._take_back(kept)
        self._states = list(states)
        if border is None or not (self._history == FULL and self._go_to(border)):
            self._cache = None
        for turn in turns[kept:index]:
            self.run_again(turn)

    @contextmanager
    def turn_or_nothing(self) -> Iterator[None]:
        """A turn that leaves no trace where it fails before it is added to the chat."""
        count = len(self.turns)
        try:
            yield
        except BaseException:
            if len(self.turns) == count and not (self._history == FULL and self._go_to(self._begun_at)):
                self._cache = None
            raise
        finally:
            self._begun_at = None

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """A change of the chat that leaves it as it was if it fails; a reply that is closed early has not failed."""
        return self._or_else(list(self.turns), self._states, self.memory_set)

    @contextmanager
    def _or_else(self, turns: list[Turn], states: States, memory_set: bool) -> Iterator[None]:
        """Within it, an error leaves the chat with these turns and this memory."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.turns, self._states, self.memory_set, self._cache = turns, states, memory_set, None
            raise

    def _take_back(self, index: int) -> None:
        """Take turns off the list, and with them what the first of them began from."""
        self.memory_set = self.turns[index].memory_set
        self.turns = self.turns[:index]

    def _placed(self, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE) -> tuple[Turn, PromptCache]:
        """The turn with the border before it, and a cache in which what it sees of earlier turns has been read."""
        cache = self._cache if self._history == FULL else None
        if cache is None:
            cache = self._run_all() if self._history == FULL else make_prompt_cache(self.model)
            cache[-1].cache = list(self._states)
        self._cache = cache
        turn = self._with_border(turn)
        self._begun_at = turn.before
        seen = NO_SEGMENTS if self._history == FULL else seen_before(turn, self.turns, self._history)
        if seen.ids:
            read(self.model, cache, seen, False, step, want_logits=False)
        return turn, cache

    def _with_border(self, turn: Turn) -> Turn:
        text = mark(self._cache) if self._cache is not None and self._history == FULL else None
        return replace(turn, before=Border(self.states, text), memory_set=self.memory_set)

    def _write_ended(self, turn: Turn) -> None:
        """Write a turn that has been read, or is known, as one text, and add it to the chat."""
        cache = self._cache
        if self._history != FULL or not self._go_to(turn.before):
            self._cache = None
            turn, cache = self._placed(turn)
        with observing(self.model, collector := _KeepGates()):
            read(self.model, cache, turn.segments, want_logits=False)
        # The text that was read has given way to the text that was written.
        self._add(replace(turn, between=None, logits=None, drift=self._drift(collector)), list(cache[-1].cache))

    def _add(self, turn: Turn, states: States) -> None:
        """Add a turn to the chat, with how far it moved the memory."""
        moved = changes(turn.before.states, states)
        if not all(map(math.isfinite, moved.values())):
            warnings.warn(
                "the memory is not finite after this turn, so that replies mean nothing: undo() goes back to before "
                "it, reset() forgets everything",
                stacklevel=2,
            )
        if self.turns:
            earlier = self.turns[-1].as_earlier()
            self.turns[-1] = earlier if self._history == FULL else replace(earlier, between=None)
        self.turns.append(replace(turn, drift=replace(turn.drift, changed=moved)))
        self._states, self.memory_set = states, False

    def _go_to(self, border: Border | None) -> bool:
        """Take the cache back to a border whose text it holds; False where that cannot be done."""
        if border is None or self._cache is None or not go_back(self._cache, border.text):
            return False
        self._cache[-1].cache = list(border.states)
        return True

    def _run_all(self) -> PromptCache:
        """A cache with the text of all turns; the memory stays as it is known to be."""
        turns, states, memory_set = self.turns, self._states, self.memory_set
        self._cache = make_prompt_cache(self.model)
        if not turns:
            return self._cache
        with self._or_else(turns, states, memory_set):
            self.turns, self._states, self.memory_set = [], self._empty(), False
            for index, turn in enumerate(turns):
                after = turns[index + 1].before if index + 1 < len(turns) else Border(states, None)
                if turn.remembered and after is not None:
                    # No text of it is seen.
                    self.turns.append(turn)
                else:
                    self.run_again(turn)
                    again = self.turns[-1]
                    self.turns[-1] = replace(again, drift=turn.drift or again.drift)
                if after is not None:
                    # What a turn led to is known, and it may have been run with another history.
                    self._states = list(after.states)
            self._states, self.memory_set = states, memory_set
        return self._cache

    def _border(self) -> Border:
        return Border(list(self._cache[-1].cache), mark(self._cache))

    def _empty(self) -> States:
        layout: MemoryLayout = self.model.memory_layout
        return [mx.zeros((1, *shape)) for shape in layout.shapes]

    def _drift(self, gates: "_KeepGates") -> Drift:
        """The share of the memory that a turn kept; how far it moved the memory is known when it has ended."""
        return Drift(gates.means() or {layer: 1.0 for layer, state in enumerate(self._states) if state.size}, {})


class _KeepGates:
    """An `Observer`: the mean keep gate of the tokens that are written, by layer."""

    def __init__(self):
        self._sums: dict[int, tuple[mx.array, mx.array]] = {}

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if reads.written:
            before = self._sums.get(layer, (mx.zeros(()), mx.zeros(())))
            found = reads.sum_over_written(reads.gates.keep)
            self._sums[layer] = (before[0] + found[0], before[1] + found[1])

    def then(self, progress: Progress | None) -> Progress:
        """A progress callback that lets go of the activations that the sums are made of, and calls another one."""

        def told(done: int, total: int) -> None:
            mx.eval(list(self._sums.values()))
            if progress is not None:
                progress(done, total)

        return told

    def means(self) -> dict[int, float]:
        """By layer; empty where nothing was written."""
        if not self._sums:
            return {}
        shares = [found / mx.maximum(count, 1) for found, count in self._sums.values()]
        return dict(zip(self._sums, mx.stack(shares).tolist(), strict=True))
