"""`Opener`: reads the messages of the turns of a `ReplyBatch`, before their replies are generated."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spread import same_tokens
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply, NewReply, chosen
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.reading.fitting import check_fits
from mlx_deltamem.sessions.reading.starts import Starts, read_new_start
from mlx_deltamem.sessions.reading.together import can_run_together, run_together
from mlx_deltamem.sessions.replies.reply import Reply, ReplyTokens, logits_of
from mlx_deltamem.sessions.turns.drift import KeepGateMeans
from mlx_deltamem.sessions.turns.restore import can_be_cut
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns

_BATCHED_OPTIONS = {"logits_processors"}
# A reply, and its first token with all log-probabilities `[V]`. These are None if the last token of the messages runs
# in the batch, or if the reply runs beside the batch.
Opened: TypeAlias = tuple[BatchedReply, tuple[int, mx.array] | None]


class Opener:
    """Reads the messages of turns of several chats with one model.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, which is that of the chats.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper):
        self._model = model
        self._tokenizer = tokenizer
        # Found once: to make a prompt cache takes time.
        cache = make_prompt_cache(model)
        self._is_mergeable = can_run_together(cache)
        self._can_be_cut = all(map(can_be_cut, cache[:-1]))
        self._starts = Starts()
        # One for all replies, so that mlx-lm calls it once for all of them.
        self._greedy = same_tokens(model, greedy_sampler)

    def can_be_together(self, new: NewReply) -> bool:
        """Whether `open_together` can read the messages of a turn: they are short, and nothing has to run before."""
        state = new.chat.state
        # If the text that is kept has to run again, there is no cache yet.
        is_ready = state.cache is not None or not state.keeps_text or not said_turns(state.turns, new.turn.conversation)
        is_short = len(new.turn.opening.ids) <= new.settings.prefill_step_size
        is_mergeable = self._is_mergeable and can_run_together(state.cache or [])
        return is_mergeable and is_ready and is_short and state.writes_tokens and _is_plain(new)

    def open(self, new: NewReply) -> Opened:
        """Read the messages of a turn.

        Raises:
            ValueError: The messages do not fit into the model's window. After any error the chat is unchanged.
        """
        state, settings = new.chat.state, new.settings
        in_batch = self._in_batch(new)
        with state.turn_or_nothing():
            step, progress = settings.prefill_step_size, settings.progress
            turn = running.begin(state, new.turn, step, progress, self._starts, whole=not in_batch)
            row = self._row(new, turn, in_batch)
            if in_batch:
                return row, None
            if not _is_plain(new) or not can_run_together(state.filled_cache):
                reply = Reply(self._model, self._tokenizer, state.filled_cache, turn, settings)
                row.tokens, row.alone = reply, reply.stream(0.0)
                return row, None
            return row, chosen(row, logits_of(turn))

    def open_together(self, group: Sequence[NewReply]) -> list[Opened | Exception]:
        """Read the messages of the turns of several chats in one pass.

        Returns:
            For each turn, the reply, or the error of its own sampler or logits processors.

        Raises:
            Exception: The messages of one of them cannot be read. All chats are unchanged.
        """
        in_batch = all(map(self._in_batch, group))
        with ExitStack() as stack:
            for new in group:
                stack.enter_context(new.chat.state.turn_or_nothing())
            turns = self._begin_together([(new.chat.state, new.turn) for new in group], whole=not in_batch)
        found: list[Opened | Exception] = []
        for new, turn in zip(group, turns, strict=True):
            try:
                row = self._row(new, turn, in_batch)
                found.append((row, None if in_batch else chosen(row, logits_of(turn))))
            except Exception as error:
                new.chat.state.cache = None
                found.append(error)
        return found

    def _begin_together(self, asked: Sequence[tuple[ChatState, Turn]], whole: bool) -> list[Turn]:
        """Read the messages of turns in one pass, as `running.begin` does for one turn."""
        for state, turn in asked:
            check_fits(state, turn)
        states = [state for state, _ in asked]
        ready = [running.placed(state, turn) for state, turn in asked]
        read = [read_new_start(state, *each, self._starts) for state, each in zip(states, ready, strict=True)]
        end = None if whole else -1
        rests = [turn.part_of_opening(slice(start, end)) for (turn, _), (start, _) in zip(ready, read, strict=True)]
        with observing(self._model, gates := KeepGateMeans()):
            logits = run_together(
                self._model,
                [cache for _, cache in ready],
                [rest.ids for rest, _ in rests],
                [written for _, written in rests],
                want_logits=whole,
            )
        return [
            running.begun(state, turn, None if logits is None else logits[row : row + 1], gates.means(row), of_start)
            for row, (state, (turn, _), (_, of_start)) in enumerate(zip(states, ready, read, strict=True))
        ]

    def _in_batch(self, new: NewReply) -> bool:
        """Whether the last token of the messages runs in the first step of the reply in the batch.

        New prompt caches of the model can be merged and cut. An adapter that writes means reads the messages in one
        pass.
        """
        cache: PromptCache = new.chat.state.cache or []
        can_be_merged_and_cut = can_run_together(cache) and all(map(can_be_cut, cache[:-1]))
        is_possible = self._is_mergeable and self._can_be_cut and can_be_merged_and_cut
        return is_possible and new.chat.state.writes_tokens and _is_plain(new)

    def _row(self, new: NewReply, turn: Turn, in_batch: bool) -> BatchedReply:
        sampler = new.settings.sampler
        choose = self._greedy if sampler in (None, greedy_sampler) else same_tokens(self._model, sampler)
        return BatchedReply(new, turn, ReplyTokens(self._tokenizer, new.settings), choose, is_opened=not in_batch)


def groups(asked: Sequence[NewReply]) -> Iterator[list[NewReply]]:
    """Divide replies into groups, so that the messages of a group, padded, are as long as one step at most."""
    group: list[NewReply] = []
    longest = 0
    for new in asked:
        length = len(new.turn.opening.ids)
        if group and max(longest, length) * (len(group) + 1) > new.settings.prefill_step_size:
            yield group
            group, longest = [], 0
        group.append(new)
        longest = max(longest, length)
    if group:
        yield group


def _is_plain(new: NewReply) -> bool:
    """Whether mlx-lm's batches can generate a reply: nobody observes it, and they know its options."""
    return new.observe is None and set(new.settings.options) <= _BATCHED_OPTIONS
