"""The rows of mlx-lm's batch, as the model sees them: `RowsModel` runs each row in its own way.

mlx-lm chooses the next token of each row from the logits after the last one. Beyond that, the rows of a `ReplyBatch`
differ in what they write, and two kinds of tokens run in the steps of the others at hardly any cost: the last token of
the messages of a turn, and the tokens that the template writes after a reply.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.use import memory_off, observing, writing
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply
from mlx_deltamem.sessions.turns.drift import KeepGateMeans
from mlx_deltamem.sessions.turns.restore import States


class RowEntry:
    """The last entry of the prompt cache of a batch: which replies its rows are, in order.

    mlx-lm merges and splits it with the keys and values. It has no arrays.

    Args:
        rows: The replies.
    """

    nbytes = 0
    state: tuple[()] = ()

    def __init__(self, rows: Sequence[BatchedReply]):
        self.rows = list(rows)

    def __deepcopy__(self, memo: object) -> "RowEntry":
        return RowEntry(self.rows)

    @classmethod
    def merge(cls, entries: Sequence["RowEntry"]) -> "RowEntry":
        """An entry with the rows of several ones."""
        return cls([row for entry in entries for row in entry.rows])

    def extend(self, other: "RowEntry") -> None:
        """Add the rows of another entry, in place."""
        self.rows += other.rows

    def filter(self, indices: Sequence[int]) -> None:
        """Keep some rows, in place."""
        self.rows = [self.rows[index] for index in indices]

    def extract(self, index: int) -> "RowEntry":
        """An entry with one row."""
        return RowEntry([self.rows[index]])


class RowsModel:
    """The model, for mlx-lm's batch. Its prompt cache ends with the memory and a `RowEntry`.

    Args:
        model: An attached model.

    Attributes:
        states: By layer index, the memory after the last call, `[B, H, r, r]`.
        gates: The keep gates of the last call; None if they were not observed.
    """

    def __init__(self, model: nn.Module):
        self.states: States = []
        self.gates: KeepGateMeans | None = None
        self._model = model
        # The last mask, and what it was made of.
        self._written: list[bool] = []
        self._mask: bool | mx.array = True

    def __call__(self, tokens: mx.array, cache: PromptCache) -> mx.array:
        rows: list[BatchedReply] = cache[-1].rows
        tokens = _with_endings(tokens, rows)
        self.gates = None
        if all(row.is_off for row in rows):
            use = memory_off(self._model)
        else:
            use = writing(self._model, self._what_is_written(rows))
            if any(row.new.becomes_turn and not row.is_opened for row in rows):
                self.gates = KeepGateMeans()
        with use, observing(self._model, self.gates) if self.gates else nullcontext():
            logits: mx.array = self._model(tokens, cache=cache[:-1])
        self.states = list(cache[-2].cache)
        return logits

    def _what_is_written(self, rows: Sequence[BatchedReply]) -> bool | mx.array:
        """Whether the next token of the rows is written: one bool if all are equal, else a mask `[B, 1]`."""
        written = [row.next_is_written for row in rows]
        if written != self._written:
            self._written = written
            is_mixed = any(written) and not all(written)
            self._mask = mx.array([[each] for each in written]) if is_mixed else any(written)
        return self._mask


def _with_endings(tokens: mx.array, rows: Sequence[BatchedReply]) -> mx.array:
    """The next tokens `[B, 1]`, in which replies that have ended go on with their ending.

    mlx-lm has chosen a token for them too, which nobody wants.
    """
    endings = [[row.ending.popleft() if row.ending else -1] for row in rows]
    if all(token < 0 for (token,) in endings):
        return tokens
    given = mx.array(endings, mx.int32)
    return mx.where(given < 0, tokens.astype(mx.int32), given)
