"""The message and sentence ids of tokens, and the units of tokens that are written as one."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.access import WriteUnits
from mlx_deltamem.core.config import DeltaMemConfig

Ids = mx.array | np.ndarray | Sequence[Sequence[int]]


class UnitSource(Protocol):
    """An object that says which tokens of a call are written as one."""

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits | None:
        """The units that a call over `[batch, length]` tokens writes; None: it writes single tokens.

        Args:
            batch, length: The shape of the tokens.
            mask: `[batch, length]` bool, False for tokens that belong to no unit; None: all True.
        """


class Spans:
    """The units of a pass that is one call, from the ids of its tokens.

    Args:
        message_ids, sentence_ids: `[B, T]` int; -1 for a token in no span. Only sentence_mean adapters need
            `sentence_ids`.
        config: The adapter's configuration.

    Raises:
        ValueError: The ids are not `[B, T]` integers, or the adapter needs `sentence_ids` and they are missing.
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
        """The units that a call over `[batch, length]` tokens writes; None if no token is in a span.

        Raises:
            ValueError: The ids have another shape than the tokens.
        """
        if self.shape != (batch, length):
            raise ValueError(
                f"write_spans got ids of shape {self.shape} and the model tokens of shape {(batch, length)}; "
                "expected one id for each token of each call"
            )
        ids = self._units if mask is None else np.where(np.array(mask), self._units, -1)
        unit_ids, sizes = _units_of(ids)
        return WriteUnits(mx.array(_shares(ids, unit_ids, sizes)), mx.array(sizes > 0)) if sizes.size else None


class RunningSpans(Spans):
    """The units of one pass that is split into several calls; the result does not depend on the split.

    An object serves one pass only. Calls after the last token of the pass write single tokens.
    """

    def __init__(self, message_ids: Ids, sentence_ids: Ids | None, config: DeltaMemConfig):
        super().__init__(message_ids, sentence_ids, config)
        # The shares of all tokens would take space with the square of the text.
        self._unit_ids, self._sizes = _units_of(self._units)
        self._filled = mx.array(self._sizes > 0)
        self._done = 0
        self._carried: dict[int, mx.array] = {}

    @property
    def has_units(self) -> bool:
        """Whether at least one token is in a span."""
        return self._sizes.size > 0

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits | None:
        """The part of the units in the next `length` tokens of the pass; None if there are no units or no such tokens.

        A mask has no effect.
        """
        begin, self._done = self._done, self._done + length
        if not self.has_units or begin >= self.shape[1]:
            return None
        part = mx.array(_shares(self._units[:, begin : self._done], self._unit_ids, self._sizes))
        return WriteUnits(part, self._filled, self._carried, complete=self._done >= self.shape[1])


def unit_shares(ids: np.ndarray) -> np.ndarray | None:
    """The weight `[B, U, T]` float32 of each token in each unit, in ascending order of ids; None without any unit.

    Args:
        ids: `[B, T]` int, the unit of each token; -1 for none.
    """
    unit_ids, sizes = _units_of(ids)
    return _shares(ids, unit_ids, sizes) if sizes.size else None


def _units_of(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the units and their numbers of tokens, both `[B, U]`, in ascending order of ids."""
    rows = [np.unique(row[row >= 0], return_counts=True) for row in ids]
    most = max((len(found) for found, _ in rows), default=0)
    # Rows with fewer units are filled up with an id that no token has.
    unit_ids = [np.pad(found, (0, most - len(found)), constant_values=-2) for found, _ in rows]
    sizes = [np.pad(counts, (0, most - len(counts))) for _, counts in rows]
    return np.stack(unit_ids), np.stack(sizes)


def _shares(ids: np.ndarray, unit_ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The weight `[B, U, T]` float32 of each token `[B, T]` in each unit `[B, U]`."""
    members = unit_ids[:, :, None] == ids[:, None, :]
    shares: np.ndarray = members.astype(np.float32) / np.maximum(sizes, 1).astype(np.float32)[..., None]
    return shares


def _ids(name: str, ids: Ids) -> np.ndarray:
    """The ids as a numpy array `[B, T]` int64, -1 for a token in no span; `name` is for messages."""
    try:
        array = np.array(ids)
    except ValueError:
        if isinstance(ids, mx.array):
            raise ValueError(f"{name} has no values yet; call write_spans outside of mx.compile") from None
        raise ValueError(f"{name} has rows of different lengths; expected [B, T] integers") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}; expected [B, T] integers")
    # Signed, because the tokens of padding become -1. `_units_of` uses -2 for units without tokens.
    return np.maximum(array.astype(np.int64), -1)
