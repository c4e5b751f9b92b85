"""`ReplyBatch`: replies of several chats that are generated together, each with its own memory.

mlx-lm's `BatchGenerator` runs the model (`RowBatch`). The memory is one more entry in the prompt cache of each row, and
so is a `RowEntry`, which says how the row runs. So mlx-lm merges and splits both with the keys and values.

The last token of the messages of a turn, and what the template writes after the reply, run in the steps of the batch
too, where this is possible: a pass of its own would cost nearly as much as a step of all rows.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.spread import world_of
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply, Begun, NewReply
from mlx_deltamem.sessions.batch.opener import Opened, Opener, groups
from mlx_deltamem.sessions.batch.rerun import next_again, open_again
from mlx_deltamem.sessions.batch.row_batch import RowBatch
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.replies.replying import end_turn, tokens_after, with_reply
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.turns.state import ChatState


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
        self._opener = Opener(model, tokenizer)
        self._rows: list[BatchedReply] = []
        # Those that have failed and left.
        self._failed: list[BatchedReply] = []
        # Responses that the next step hands out.
        self._pending: list[tuple[BatchedReply, GenerationResponse]] = []
        self._batch = RowBatch(model, most)

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, new: NewReply) -> Begun:
        """Read the messages of a turn.

        Returns:
            The reply, and its first response if that is known already.

        Raises:
            ValueError: A reply of the chat is under way, the batch is full, or the messages do not fit into the
                model's window. After any error the chat is unchanged.
        """
        self._check_free(new)
        return self._taken_in(self._opener.open(new))

    def begin_all(self, asked: Sequence[NewReply]) -> Iterator[tuple[NewReply, Begun | Exception]]:
        """Begin several replies, as `begin` does. Short messages of different chats are read in one pass.

        Yields:
            Each reply that was asked for as soon as it has begun, with the result of `begin` or its error.
        """
        together: dict[ChatState, NewReply] = {}
        alone = []
        for new in asked:
            if new.chat.state not in together and self._opener.can_be_together(new):
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
            for new in group:
                self._check_free(new)
            opened = self._opener.open_together(group)
        except Exception as error:
            world_of(self.model).check_common(error)
            # One of them fails. Alone, the others do not.
            return []
        found: list[tuple[NewReply, Begun | Exception]] = []
        for new, each in zip(group, opened, strict=True):
            if isinstance(each, Exception):
                found.append((new, each))
                continue
            try:
                self._check_free(new)
                found.append((new, self._taken_in(each)))
            except Exception as error:
                new.chat.state.cache = None
                found.append((new, error))
        return found

    def _check_free(self, new: NewReply) -> None:
        new.chat.state.check_idle()
        if len(self) >= self.most:
            raise ValueError(f"the batch has {self.most} replies; expected fewer: wait until one has ended")

    def _taken_in(self, opened: Opened) -> Begun:
        """Take a reply in, and its first token if that is known."""
        row, first = opened
        self._enter(row)
        try:
            if first is not None:
                return row, self._first(row, *first)
            if row.alone is None:
                self._batch.insert(row, row.turn.opening.ids[-1])
        except BaseException:
            self.abort(row)
            raise
        return row, None

    def step(self) -> list[tuple[BatchedReply, GenerationResponse]]:
        """Generate one token of each reply.

        Returns:
            The responses. One with a `finish_reason` is the last of its reply, which has then ended.

        Raises:
            Exception: The model or a sampler failed. `rebuild` goes on with the replies that can go on.
        """
        responses, self._pending = self._pending, []
        try:
            for row in list(self._rows):
                if row.alone is not None:
                    responses.append((row, self._step_alone(row)))
            self._step_rows(responses)
        except BaseException:
            self._pending = responses
            raise
        return responses

    def _step_rows(self, responses: list[tuple[BatchedReply, GenerationResponse]]) -> None:
        """Generate one token of each reply in mlx-lm's batch. The responses are added to those that are given."""
        ended = []
        for row, token, logprobs in self._batch.step():
            if row.last is not None:
                continue
            response = row.taken(token, logprobs)
            if response.finish_reason is None:
                responses.append((row, response))
            else:
                row.last = response
                ended.append(row)
        self._begin_endings(ended)
        over = [row for row in self._batch if row.last is not None and not row.ending]
        for row, cache in zip(over, self._batch.take_out(over), strict=True):
            self._end(row, cache)
            responses.append((row, cast(GenerationResponse, row.last)))

    def _begin_endings(self, ended: list[BatchedReply]) -> None:
        """Let the endings of replies run in the batch, if steps are made for other replies anyway."""
        if len(self._batch) == 1:
            return
        for row in ended:
            if row.new.becomes_turn:
                turn = with_reply(row.state, self.tokenizer, row.turn, row.tokens)
                rest = tokens_after(row.state, turn, row.tokens)
                if rest is not None:
                    row.turn, row.ending = turn, deque(rest.ids)

    def end(self, row: BatchedReply) -> None:
        """End a reply early, at its last token. Its turn is added to the chat."""
        if row.is_ended:
            return
        cache = self._batch.take_out([row])[0] if row in self._batch else None
        if row.alone is None and not row.tokens.ids and row.last is None and row.new.becomes_turn:
            # It has no token yet. A turn has one at least.
            try:
                row.taken_unread(*next_again(row))
            except BaseException:
                self.abort(row)
                raise
            cache = None
        self._end(row, cache)

    def abort(self, row: BatchedReply) -> None:
        """End a reply, and take back the messages too. The chat is as before the turn."""
        if row.is_ended:
            return
        if row in self._batch:
            self._batch.take_out([row])
        self._leave(row)
        if not (row.state.keeps_text and row.state.go_to(row.turn.before)):
            row.state.cache = None

    def rebuild(self) -> list[tuple[BatchedReply, Exception]]:
        """Go on after `step` has failed: run the tokens of each reply again, alone.

        Returns:
            The replies that fail again, with their errors. They are aborted.
        """
        self._batch.close()
        self._batch = RowBatch(self.model, self.most)
        for row in list(self._rows):
            if row.alone is None:
                try:
                    self._run_again(row)
                except Exception as error:
                    row.failure = error
            if row.failure is not None and not row.is_ended:
                self.abort(row)
                self._failed.append(row)
        failed, self._failed = self._failed, []
        return [(row, row.failure) for row in failed if row.failure is not None]

    def _enter(self, row: BatchedReply) -> None:
        row.state.replying = True
        self._rows.append(row)

    def _leave(self, row: BatchedReply) -> None:
        row.state.replying = False
        row.is_ended = True
        self._rows.remove(row)
        # Nobody waits for the responses of a reply that was ended early.
        self._pending[:] = [(other, response) for other, response in self._pending if other is not row]

    def _first(self, row: BatchedReply, token: int, logprobs: mx.array) -> GenerationResponse:
        """The response with a token that has not run. The reply is added to mlx-lm's batch if it goes on."""
        response = row.taken_unread(token, logprobs)
        if response.finish_reason is None:
            self._batch.insert(row, token)
        else:
            self._end(row, None)
        return response

    def _step_alone(self, row: BatchedReply) -> GenerationResponse:
        with nullcontext() if row.new.observe is None else observing(self.model, row.new.observe):
            try:
                response = next(cast(Iterator[GenerationResponse], row.alone))
            except Exception as error:
                row.failure = error
                raise
        if response.finish_reason is not None:
            self._end(row, None)
        return response

    def _end(self, row: BatchedReply, cache: PromptCache | None) -> None:
        """Add the turn of a reply, which is not in mlx-lm's batch any more, to its chat.

        Args:
            row: The reply.
            cache: The prompt cache that the row had there; None: that of the chat has all that has run.
        """
        self._leave(row)
        if not row.new.becomes_turn:
            return
        state = row.state
        try:
            if cache is not None:
                *text, memory = cache
                state.filled_cache[:-1] = text
                state.filled_cache[-1].cache = list(memory.cache)
            with state.turn_or_nothing():
                if row.ending is None:
                    end_turn(state, self.tokenizer, row.turn, row.tokens)
                else:
                    running.finish(state, row.turn, ending=Segments.without_spans(row.ending))
        except Exception as error:
            row.failure = error
            self._failed.append(row)
            raise

    def _run_again(self, row: BatchedReply) -> None:
        """Go on with a reply after a failure: add it to the batch again, or end its turn if it had ended."""
        if row.last is None:
            self._pending.append((row, self._first(row, *next_again(row))))
            return
        open_again(row)
        row.ending, row.tokens.unread, row.tokens.end_id = None, len(row.tokens.ids) - row.kept, None
        self._end(row, None)
        self._pending.append((row, row.last))
