"""`RowBatch`: mlx-lm's batch of the replies that are generated together."""

from collections.abc import Iterator, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generation_stream

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply
from mlx_deltamem.sessions.batch.rows import RowEntry, RowsModel
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.reading.together import memory_is_empty

# mlx-lm's batches need a number of tokens. This one is more than any window.
_NO_LIMIT = 2**31


class RowBatch:
    """The rows of mlx-lm's batch. They stay in it until they are taken out.

    Args:
        model: An attached model.
        most: The largest number of rows.
    """

    def __init__(self, model: nn.Module, most: int):
        self._model = RowsModel(model)
        # mlx-lm only calls the model.
        called = cast(nn.Module, self._model)
        self._generator = BatchGenerator(called, completion_batch_size=most, prefill_batch_size=most)
        self._uids: dict[BatchedReply, int] = {}

    def __len__(self) -> int:
        return len(self._uids)

    def __contains__(self, row: BatchedReply) -> bool:
        return row in self._uids

    def __iter__(self) -> Iterator[BatchedReply]:
        return iter(self._uids)

    def close(self) -> None:
        """Give back what mlx-lm holds for the batch. On a Mac that is the limit of wired memory."""
        self._generator.close()

    def insert(self, row: BatchedReply, token: int) -> None:
        """Add a reply, with the token that runs next."""
        is_written = row.turn.reply_written or row.next_is_written
        row.is_off = not is_written and memory_is_empty(row.state.filled_cache[-1].cache)
        [self._uids[row]] = self._generator.insert_segments(
            [[[token]]],
            max_tokens=[_NO_LIMIT],
            caches=[[*row.state.filled_cache, RowEntry([row])]],
            all_tokens=[[*row.turn.opening.ids, *row.tokens.ids][:-1]],
            samplers=[row.sampler],
            logits_processors=[row.settings.options.get("logits_processors") or []],
        )

    def step(self) -> list[tuple[BatchedReply, int, mx.array]]:
        """Run the next token of each row.

        Returns:
            For each row that had run before this call: the token that was chosen after its last run, with all
            log-probabilities `[V]`. This call has run that token too. A row with an `ending` has run the next token of
            the ending instead.
        """
        if not self._uids:
            return []
        rows = {uid: row for row, uid in self._uids.items()}
        begun, generated = self._generator.next()
        # The last call of the model was that of these rows.
        for index, each in enumerate(begun):
            self._opened(rows[each.uid], index)
        return [(rows[each.uid], each.token, each.logprobs) for each in generated]

    def take_out(self, rows: Sequence[BatchedReply]) -> list[PromptCache | None]:
        """Take rows out of the batch; returns their prompt caches, None for those that become no turn."""
        if not rows:
            return []
        uids = [self._uids.pop(row) for row in rows]
        keep = any(row.new.becomes_turn for row in rows)
        with mx.stream(generation_stream):
            removed = self._generator.remove(uids, return_prompt_caches=keep)
            return [
                _kept(row, removed[uid][0]) if row.new.becomes_turn else None
                for row, uid in zip(rows, uids, strict=True)
            ]

    def _opened(self, row: BatchedReply, index: int) -> None:
        """Note that the first token of a row has run; `index` is its row in the last call."""
        row.tokens.unread = 0
        if row.is_opened:
            return
        row.is_opened = True
        if row.new.becomes_turn:
            # A memory of one row serves all.
            after = [each if each.shape[0] == 1 else each[index : index + 1] for each in self._model.states]
            after = [mx.contiguous(each) for each in after]
            kept = {} if self._model.gates is None else self._model.gates.means(index)
            row.turn = running.opened(row.state, row.turn, after, kept)


def _kept(row: BatchedReply, cache: PromptCache) -> PromptCache:
    """The prompt cache of a row that has left the batch. Arrays that are not computed would keep those of all rows."""
    # The last entry is the row's own.
    *text, memory, _ = cache
    memory.cache = [mx.contiguous(state) for state in memory.cache]
    between = [] if row.turn.between is None else row.turn.between.states
    mx.async_eval([entry.state for entry in text], memory.cache, between)
    return [*text, memory]
