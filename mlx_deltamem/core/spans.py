"""Message and sentence ids of tokens, and the units that are written from them."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.access import WriteUnits
from mlx_deltamem.core.config import DeltaMemConfig

Ids = mx.array | np.ndarray | Sequence[Sequence[int]]


class UnitSource(Protocol):
    """Whoever says which tokens are written as one."""

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits | None:
        """What a call over `[batch, length]` tokens writes; None: each token by itself."""


class Spans:
    """The ids of the tokens of a forward pass.

    Args:
        message_ids, sentence_ids: `[B, T]` int, -1 = in no span. Only sentence_mean adapters need sentence ids.
        config: The adapter's configuration.

    Raises:
        ValueError: The ids are not such arrays, or those that the adapter needs are missing.
    """

    def __init__(self, message_ids: Ids, sentence_ids: Ids | None, config: DeltaMemConfig):
        messages = _ids("message_ids", message_ids)
        self.shape = messages.shape
        self._units = messages
        if config.memory_write_granularity == "sentence_mean":
            if sentence_ids is None:
                raise ValueError("write_spans got no sentence_ids; a sentence_mean adapter needs them")
            sentences = _ids("sentence_ids", sentence_ids)
            if sentences.shape != self.shape:
                raise ValueError(
                    f"write_spans got message_ids {self.shape} and sentence_ids {sentences.shape}; expected one shape"
                )
            self._units = np.where(messages >= 0, sentences, -1)

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits | None:
        """What a pass over `[batch, length]` tokens writes; None where no token is in a span.

        Raises:
            ValueError: The ids are for other tokens than these.
        """
        if self.shape != (batch, length):
            raise ValueError(
                f"write_spans got ids of shape {self.shape} and the model tokens of shape {(batch, length)}; "
                "expected one id for each token of each call"
            )
        weights = unit_shares(self._units if mask is None else np.where(np.array(mask), self._units, -1))
        return None if weights is None else WriteUnits(mx.array(weights), mx.array(weights.any(axis=-1)))


class RunningSpans(Spans):
    """The ids of one pass that is run in several calls: what is written does not depend on how it is cut.

    Give it to one pass only. Calls after its last token write token by token.
    """

    def __init__(self, message_ids: Ids, sentence_ids: Ids | None, config: DeltaMemConfig):
        super().__init__(message_ids, sentence_ids, config)
        self._weights = unit_shares(self._units)
        self._done = 0
        self._carried: dict[int, mx.array] = {}

    @property
    def has_units(self) -> bool:
        """Whether any token is in a span."""
        return self._weights is not None

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits | None:
        begin, self._done = self._done, self._done + length
        if self._weights is None or begin >= self.shape[1]:
            return None
        part = mx.array(self._weights[:, :, begin : self._done])
        mask = mx.array(self._weights.any(axis=-1))
        return WriteUnits(part, mask, self._carried, complete=self._done >= self.shape[1])


def unit_shares(ids: np.ndarray) -> np.ndarray | None:
    """The share `[B, U, T]` of each token in its unit, units in ascending order of ids; None where there are none."""
    rows = [np.unique(row[row >= 0]) for row in ids]
    most = max(len(row) for row in rows)
    if most == 0:
        return None
    # Filled up with an id that no token has.
    unit_ids = np.stack([np.pad(row, (0, most - len(row)), constant_values=-2) for row in rows])
    members = (unit_ids[:, :, None] == ids[:, None, :]).astype(np.float32)
    return members / np.maximum(members.sum(axis=-1, keepdims=True), 1)


def _ids(name: str, ids: Ids) -> np.ndarray:
    try:
        array = np.array(ids)
    except ValueError:
        if isinstance(ids, mx.array):
            raise ValueError(f"{name} has no values yet; write_spans cannot be used within mx.compile") from None
        raise ValueError(f"{name} has rows of different lengths; expected [B, T] integers") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} is an array {array.shape} of {array.dtype}; expected [B, T] integers")
    return array
