"""`ReplyBatch`: replies of several chats that are generated together, each with its own memory.

mlx-lm's `BatchGenerator` runs the model. The memory is one more entry in the prompt cache of each row, and so is the
mark that says whether the row is written. So mlx-lm merges and splits both with the keys and values.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, GenerationResponse
from mlx_lm.models.cache import ArraysCache
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spread import same_tokens, world_of
from mlx_deltamem.core.use import memory_off, observing, write_mask
from mlx_deltamem.sessions import running
from mlx_deltamem.sessions.batched_reply import (
    BatchedReply,
    Begun,
    NewReply,
    can_be_batched,
    can_begin_together,
    chosen,
    groups,
)
from mlx_deltamem.sessions.openings import begin_together
from mlx_deltamem.sessions.prefill import prefill
from mlx_deltamem.sessions.reply import Reply, ReplyTokens, logits_of
from mlx_deltamem.sessions.replying import end_turn
from mlx_deltamem.sessions.segments import Segments
from mlx_deltamem.sessions.starts import Starts
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.together import can_run_together, memory_is_empty
from mlx_deltamem.sessions.turn import Turn

# mlx-lm's batches need a number of tokens. This one is more than any window.
_NO_LIMIT = 2**31


class ReplyBatch:
    """Replies of several chats with one model, generated together.

    One thread calls all methods. Replies come and go while the others go on. When a reply ends, its turn is added to
    its chat, as in `ChatSession.stream`.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, which is that of the chats.
        most: The largest number of replies at a time.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, most: int = 32):
        self.model = model
        self.tokenizer = tokenizer
        self.most = most
        # Found once: to make a prompt cache takes time.
        self._is_mergeable = can_run_together(make_prompt_cache(model))
        self._starts = Starts()
        # One for all replies, so that mlx-lm calls it once for all of them.
        self._greedy = same_tokens(model, greedy_sampler)
        self._rows: list[BatchedReply] = []
        # Responses that the next step hands out.
        self._pending: list[tuple[BatchedReply, GenerationResponse]] = []
        self._generator = self._new_generator()

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, new: NewReply) -> Begun:
        """Read the messages of a turn, and choose the first token of the reply.

        Returns:
            The reply and its first response.

        Raises:
            ValueError: A reply of the chat is under way, the batch is full, or the messages do not fit into the
                model's window. After any error the chat is unchanged.
        """
        state, settings = new.chat.state, new.settings
        self._check_free(new)
        with state.turn_or_nothing():
            turn = running.begin(state, new.turn, settings.prefill_step_size, settings.progress, self._starts)
            row = self._new_row(new, turn)
            if new.observe is not None or not can_be_batched(state.filled_cache, settings):
                reply = Reply(self.model, self.tokenizer, state.filled_cache, turn, settings)
                row.tokens, row.alone = reply, reply.stream(0.0)
                self._enter(row)
                return row, None
            token, logprobs = chosen(row, logits_of(turn))
        return row, self._entered(row, token, logprobs)

    def begin_all(self, asked: Sequence[NewReply]) -> Iterator[tuple[NewReply, Begun | Exception]]:
        """Begin several replies, as `begin` does. Short messages of different chats are read in one pass.

        Yields:
            Each reply that was asked for as soon as it has begun, with the result of `begin` or its error.
        """
        together: dict[ChatState, NewReply] = {}
        alone = []
        for new in asked:
            if self._is_mergeable and new.chat.state not in together and can_begin_together(new):
                together[new.chat.state] = new
            else:
                alone.append(new)
        for group in groups(list(together.values())):
            if len(group) > 1 and (begun := self._begin_together(group)):
                yield from begun
            else:
                alone += group
        for new in alone:
            try:
                yield new, self.begin(new)
            except Exception as error:
                yield new, error

    def _begin_together(self, group: Sequence[NewReply]) -> list[tuple[NewReply, Begun | Exception]]:
        """Begin replies in one pass. The list is empty if that fails."""
        try:
            with ExitStack() as stack:
                for new in group:
                    self._check_free(new)
                    stack.enter_context(new.chat.state.turn_or_nothing())
                turns = begin_together([(new.chat.state, new.turn) for new in group], self._starts)
        except Exception as error:
            world_of(self.model).check_common(error)
            # One of them fails. Alone, the others do not.
            return []
        found: list[tuple[NewReply, Begun | Exception]] = []
        for new, turn in zip(group, turns, strict=True):
            try:
                self._check_free(new)
                row = self._new_row(new, turn)
                found.append((new, (row, self._entered(row, *chosen(row, logits_of(turn))))))
            except Exception as error:
                new.chat.state.cache = None
                found.append((new, error))
        return found

    def _new_row(self, new: NewReply, turn: Turn) -> BatchedReply:
        sampler = new.settings.sampler
        choose = self._greedy if sampler in (None, greedy_sampler) else same_tokens(self.model, sampler)
        return BatchedReply(new, turn, ReplyTokens(self.tokenizer, new.settings), choose)

    def _check_free(self, new: NewReply) -> None:
        new.chat.state.check_idle()
        if len(self) >= self.most:
            raise ValueError(f"the batch has {self.most} replies; expected fewer: wait until one has ended")

    def _entered(self, row: BatchedReply, token: int, logprobs: mx.array) -> GenerationResponse:
        """Take a reply in, with its first token."""
        self._enter(row)
        try:
            return self._first(row, token, logprobs)
        except BaseException:
            self.abort(row)
            raise

    def step(self) -> list[tuple[BatchedReply, GenerationResponse]]:
        """Generate one token of each reply.

        Returns:
            The responses. One with a `finish_reason` is the last of its reply, which has then ended.

        Raises:
            Exception: The model or a sampler failed. `rebuild` goes on with the replies that can go on.
        """
        responses, self._pending = self._pending, []
        responses += [self._step_alone(row) for row in list(self._rows) if row.alone is not None]
        rows = {row.uid: row for row in self._rows if row.uid is not None}
        if rows:
            self._rows_model.is_off = all(row.is_off for row in rows.values())
            begun, generated = self._generator.next()
            for started in begun:
                rows[started.uid].tokens.unread = 0
            for one in generated:
                row = rows[one.uid]
                response = self._taken(row, one.token, one.logprobs, is_last=one.finish_reason is not None)
                responses.append((row, response))
                if one.finish_reason is not None:
                    row.uid = None
                if response.finish_reason is not None:
                    self._end(row, one.prompt_cache)
        return responses

    def end(self, row: BatchedReply) -> None:
        """End a reply early, at its last token. Its turn is added to the chat."""
        if not row.is_ended:
            self._end(row, None)

    def abort(self, row: BatchedReply) -> None:
        """End a reply, and take back the messages too. The chat is as before the turn."""
        if row.is_ended:
            return
        if row.uid is not None:
            self._generator.remove([row.uid])
        self._leave(row)
        if not (row.state.keeps_text and row.state.go_to(row.turn.before)):
            row.state.cache = None

    def rebuild(self) -> list[tuple[BatchedReply, Exception]]:
        """Go on after `step` has failed: run the tokens of each reply again, alone.

        Returns:
            The replies that fail again, with their errors. They are aborted.
        """
        self._generator = self._new_generator()
        failed = []
        for row in list(self._rows):
            if row.alone is None:
                row.uid = None
                try:
                    self._run_again(row)
                except Exception as error:
                    row.failure = error
            if row.failure is not None:
                failed.append((row, row.failure))
                self.abort(row)
        return failed

    def _new_generator(self) -> BatchGenerator:
        # mlx-lm only calls the model.
        self._rows_model = _RowsModel(self.model)
        model = cast(nn.Module, self._rows_model)
        return BatchGenerator(model, completion_batch_size=self.most, prefill_batch_size=self.most)

    def _enter(self, row: BatchedReply) -> None:
        row.state.replying = True
        self._rows.append(row)

    def _leave(self, row: BatchedReply) -> None:
        row.state.replying = False
        row.is_ended = True
        self._rows.remove(row)

    def _first(self, row: BatchedReply, token: int, logprobs: mx.array) -> GenerationResponse:
        """The response with a token that has not run. The reply is added to mlx-lm's batch if it goes on."""
        done = len(row.tokens.ids) + 1
        response = self._taken(row, token, logprobs, is_last=done == row.settings.max_tokens)
        if row.tokens.end_id is not None:
            row.tokens.end_id = None
        else:
            row.tokens.unread = 1
        if response.finish_reason is None:
            self._insert(row, token)
        else:
            self._end(row, None)
        return response

    def _insert(self, row: BatchedReply, token: int) -> None:
        row.is_off = not row.turn.reply_written and memory_is_empty(row.state.filled_cache[-1].cache)
        written = ArraysCache(1)
        written[0] = mx.array([[row.turn.reply_written]])
        longest = row.settings.max_tokens
        [row.uid] = self._generator.insert_segments(
            [[[token]]],
            max_tokens=[_NO_LIMIT if longest < 0 else longest - len(row.tokens.ids)],
            caches=[[*row.state.filled_cache, written]],
            all_tokens=[[*row.turn.opening.ids, *row.tokens.ids[:-1]]],
            samplers=[row.sampler],
            logits_processors=[row.settings.options.get("logits_processors") or []],
        )

    def _taken(self, row: BatchedReply, token: int, logprobs: mx.array, is_last: bool) -> GenerationResponse:
        """The response with the next token of a row."""
        is_end = token in self.tokenizer.eos_token_ids
        if not is_end:
            row.detokenizer.add_token(token)
        if is_end or is_last:
            row.detokenizer.finalize()
        return row.tokens.take(
            GenerationResponse(
                text=row.detokenizer.last_segment,
                token=token,
                logprobs=logprobs,
                from_draft=False,
                prompt_tokens=len(row.turn.opening.ids),
                prompt_tps=0.0,
                generation_tokens=len(row.tokens.ids) + 1,
                generation_tps=0.0,
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason="stop" if is_end else "length" if is_last else None,
            )
        )

    def _step_alone(self, row: BatchedReply) -> tuple[BatchedReply, GenerationResponse]:
        with nullcontext() if row.new.observe is None else observing(self.model, row.new.observe):
            try:
                response = next(cast(Iterator[GenerationResponse], row.alone))
            except Exception as error:
                row.failure = error
                raise
        if response.finish_reason is not None:
            self._end(row, None)
        return row, response

    def _end(self, row: BatchedReply, cache: PromptCache | None) -> None:
        """Add the turn of a reply to its chat.

        Args:
            row: The reply.
            cache: The row's caches if they have left the batch; else they are taken out of it.
        """
        if row.uid is not None:
            removed = self._generator.remove([row.uid], return_prompt_caches=row.new.becomes_turn)
            cache = removed[row.uid][0] if row.new.becomes_turn else None
            row.uid = None
        if not row.new.becomes_turn:
            self._leave(row)
            return
        state = row.state
        if cache is not None:
            *text, memory, _ = cache
            state.filled_cache[:-1] = text
            state.filled_cache[-1].cache = list(memory.cache)
        self._leave(row)
        with state.turn_or_nothing():
            end_turn(state, self.tokenizer, row.turn, row.tokens)

    def _run_again(self, row: BatchedReply) -> None:
        """Run the tokens of a reply that its chat's own cache does not hold, and add the reply to the batch."""
        new = Segments.without_spans(row.tokens.ids[row.kept :])
        logits = logits_of(row.turn)
        if new.ids:
            logits = prefill(self.model, row.state.filled_cache, new, row.turn.reply_written)
        row.kept, row.tokens.unread = len(row.tokens.ids), 0
        token, logprobs = chosen(row, logits)
        self._pending.append((row, self._first(row, token, logprobs)))


class _RowsModel:
    """The model, for a batch with rows that are not all written. The last entry of the cache has the marks.

    Attributes:
        is_off: Whether no row uses its memory.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.is_off = False

    def __call__(self, tokens: mx.array, cache: PromptCache) -> mx.array:
        if self.is_off:
            with memory_off(self._model):
                frozen: mx.array = self._model(tokens, cache=cache[:-1])
            return frozen
        with write_mask(self._model, cache[-1][0]):
            logits: mx.array = self._model(tokens, cache=cache[:-1])
        return logits
