"""The entry of the memory in a prompt cache: mlx-lm's `ArraysCache` with a past, so that it can be trimmed.

`trim(n)` takes the last n tokens back, exactly: the states are then those from before these tokens, up to the rounding
of float32. It reaches back to the beginning of the text in the prompt cache, with these exceptions:

- Tokens from before the memory was set (`set_memory`, `reset_memory`) or the prompt cache was loaded from a file, and
  tokens of a model in training mode.
- The middle of a text that a mean-writing adapter wrote in several calls.
- Where the keys and values cannot be trimmed (hybrid models, a window that is full), the entry keeps the last
  `entry_past.KEPT` tokens at least, and not the whole text.

Beyond that, `trim` raises a ValueError. mlx-lm has then trimmed the keys and values already, so the entry also refuses
to go on until its memory is set.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem.core.entry_past import EntryPast
from mlx_deltamem.core.late import Together
from mlx_deltamem.core.past import LayerPass, Pass, Past, Start, is_whole, rows_of, states_of, taken_back


class MemoryEntry(ArraysCache):
    """The states of all layers of a model, and their past.

    Attributes:
        cache: By layer index, the states `[B, H, r, r]` float32, or `[B, 0, 0, 0]`.
        left_padding, lengths: `[B]` int, or None: the padding that is still to come, as in mlx-lm.
    """

    # mlx-lm annotates neither these attributes nor the methods that are called below.
    cache: list[mx.array]  # type: ignore[assignment]
    left_padding: mx.array | None
    lengths: mx.array | None  # type: ignore[assignment]
    # What the last call left for the next one.
    together: Together | None = None
    # These are values of the class, because mlx-lm also makes entries without calling `__init__`.
    _past: EntryPast = EntryPast()
    # The shapes of the states that the past leads to without the batch axis, of the model that made them.
    _shapes: Sequence[tuple[int, ...]] = ()

    def is_trimmable(self) -> bool:
        """Whether tokens can be taken back: always. mlx-lm asks this of each entry."""
        return True

    def trim(self, n: int) -> int:
        """Take the last n tokens back.

        Args:
            n: The number of tokens, as for mlx-lm's caches; all tokens, if there are fewer.

        Returns:
            The number of tokens that were taken back.

        Raises:
            ValueError: The past does not reach that far.
        """
        if n <= 0:
            return 0
        # A single past stands for all rows.
        rows = self._past.by_row(1, self.cache) if len(self._past.rows) == 1 else self._past_by_row()
        reached = max(row.total for row in rows)
        if any(row.total < n and not is_whole(row) for row in rows):
            self._past = self._past.missing(n, self.cache)
            raise ValueError(
                f"the memory cannot be trimmed by {n} tokens: its past has {min(row.total for row in rows)}, because "
                "the memory was set, loaded or trained then, or the keys and values cannot be trimmed as far; make a "
                "new cache and read the text again"
            )
        if not reached:
            return 0
        rows = [taken_back(row, min(n, row.total)) for row in rows]
        try:
            states = states_of(rows, self.cache)
        except ValueError:
            self._past = self._past.missing(n, self.cache)
            raise
        done = min(n, reached)
        self.cache = states
        if self.left_padding is not None:
            self.left_padding = self.left_padding + done
        if self.lengths is not None:
            self.lengths = self.lengths + done
        self._past = self._past.trimmed(rows, states, done)
        return done

    def start(self, start: Start) -> None:
        """Begin a new past with the present states."""
        self._past = EntryPast.begun(start, self.cache)

    def holds(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether the states are those that the last call left, of a model whose states have these shapes."""
        return self._shapes is shapes and self._past.leads_to(self.cache)

    def begin(self, backbone: Sequence[Any] | None) -> None:
        """Begin a call of the model.

        Args:
            backbone: The other entries of the prompt cache; None if there are none.

        Raises:
            ValueError: The text was trimmed and the memory was not.
        """
        follows = self._past.leads_to(self.cache)
        if follows and self._past.missed:
            raise ValueError(
                f"the text in this prompt cache was trimmed by {self._past.missed} tokens and its memory could not be; "
                "make a new cache with mlx_deltamem.make_prompt_cache(model), or set the memory with set_memory"
            )
        # An entry may be moved to another text: then its past is not that of the text.
        if not follows or not self._past.has_tokens or backbone is None or is_empty(backbone[0]):
            self.start(Start(backbone is not None and all(is_empty(entry) for entry in backbone)))

    def end(
        self,
        states: list[mx.array],
        shape: tuple[int, int],
        layers: Mapping[int, LayerPass] | None,
        backbone: Sequence[Any] | None,
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> list[mx.array]:
        """End a call of the model.

        Args:
            states: By layer index, the states after the call.
            shape: B and T, the shape of the tokens.
            layers: The passes of the layers that wrote; None if they are not known.
            backbone: The other entries of the prompt cache; None if there are none.
            shapes: The shapes of the model's states without the batch axis, for `holds`.

        Returns:
            Arrays to evaluate with the output of the call.
        """
        batch, tokens = shape
        before, self.cache, self._shapes = self.cache, states, shapes
        self.advance(tokens)  # type: ignore[no-untyped-call]
        if layers is None or backbone is None:
            self.start(Start(is_whole=False))
            return []
        if not tokens:
            self._past = self._past.leading_to(states)
            return []
        last = Pass(batch, tokens, before, list(states), layers)
        self._past, arrays = self._past.extended(last, lambda: all(map(_is_trimmable, backbone)))
        return arrays

    def make_mask(self, N: int, **options: object) -> mx.array | None:  # noqa: N803  (mlx-lm's name)
        """The mask `[B, N]` of the next tokens, False for padding; None: no padding.

        Raises:
            ValueError: The entry got to a layer of a backbone, which asks for a causal mask with `options`.
        """
        if options:
            raise ValueError(
                "a model got the memory of another one as its keys and values; for speculative decoding with a given "
                "prompt cache, join the caches with mlx_deltamem.with_draft(model, cache, draft_cache)"
            )
        mask: mx.array | None = super().make_mask(N)
        return mask

    @property
    def batch_size(self) -> int:
        """The number of rows. A state of one row is that of all rows."""
        sizes = [state.shape[0] for state in self.cache]
        sizes += [counts.size for counts in (self.left_padding, self.lengths) if counts is not None]
        # Where layers ran without their memory, only the past knows the rows.
        return max([*sizes, len(self._past.rows) if self._past.leads_to(self.cache) else 0])

    def filter(self, batch_indices: Sequence[int] | mx.array) -> None:
        """Keep some rows of the batch, in place.

        Raises:
            ValueError: The batch has no such row.
        """
        rows = self._past_by_row()
        # MLX does not check the indices that mlx-lm's method reads the states by.
        indices = [self._row(int(index)) for index in batch_indices]
        self.cache = self._by_row()
        super().filter(mx.array(indices, mx.int32))  # type: ignore[no-untyped-call]
        self._take([rows[index] for index in indices])

    def extend(self, other: ArraysCache) -> None:
        """Add the rows of another entry to the batch, in place.

        Raises:
            ValueError: The other entry has the memory of another adapter.
        """
        # The other entry stays as it is.
        both, added = copy.copy(self), memory_entry(copy.copy(other))
        shapes = [state.shape[1:] for state in self.cache]
        if added is None or [state.shape[1:] for state in added.cache] != shapes:
            raise ValueError(
                f"another memory than states {shapes} was to join a batch with these; expected prompt caches of models "
                "with the same adapter"
            )
        rows = [*self._past_by_row(), *added._past_by_row()]
        if self.left_padding is not None or added.left_padding is not None:
            # mlx-lm takes a row without padding for one at its first token: trimming would then bring padding back.
            for entry in (both, added):
                if entry.left_padding is None:
                    entry.left_padding = mx.array([-row.total for row in entry._past_by_row()], mx.int32)
        both.cache, added.cache = self._by_row(), added._by_row()
        ArraysCache.extend(both, added)
        self.cache, self.left_padding, self.lengths = both.cache, both.left_padding, both.lengths
        self._take(rows)

    def extract(self, idx: int) -> "MemoryEntry":
        """A new entry with one row of the batch.

        Raises:
            ValueError: The batch has no such row.
        """
        row = self._row(idx)
        entry = MemoryEntry(len(self.cache))
        entry.cache = [state[row : row + 1] for state in self._by_row()]
        entry._take([self._past_by_row()[row]])
        return entry

    @classmethod
    def merge(cls, caches: Sequence[ArraysCache]) -> "MemoryEntry":
        """A new entry with the rows of several entries of one row each."""
        entry: MemoryEntry = super().merge(caches)  # type: ignore[no-untyped-call]
        entry._take([past for each in caches for past in _past_by_row(each)])
        return entry

    def finalize(self) -> None:
        """Forget the padding. mlx-lm calls it after a batch that is padded at the right was read."""
        if self.lengths is not None:
            # Padding neither reads nor writes. mlx-lm moves it to the left, so it does not count as tokens.
            padding = np.maximum(-np.array(self.lengths), 0)
            rows = self._past.by_row(len(padding), self.cache)
            self._take([taken_back(row, int(count)) for row, count in zip(rows, padding, strict=True)])
        super().finalize()  # type: ignore[no-untyped-call]

    @property
    def nbytes(self) -> int:
        """The bytes of the states and of their past."""
        return sum((self._past.bytes_by_array | {id(state): state.nbytes for state in self.cache}).values())

    def _past_by_row(self) -> list[Past]:
        """The past of each row of the batch."""
        return self._past.by_row(self.batch_size, self.cache)

    def _by_row(self) -> list[mx.array]:
        """The states, all with the rows of the batch."""
        return [rows_of(state, self.batch_size) for state in self.cache]

    def _row(self, index: int) -> int:
        """The row of the batch at an index, which counts from the end if it is negative.

        Raises:
            ValueError: The batch has no such row.
        """
        batch = self.batch_size
        if not -batch <= index < batch:
            raise ValueError(f"row {index} was asked for; expected one of the {batch} rows of the prompt cache")
        return index % batch

    def _take(self, rows: Sequence[Past]) -> None:
        """Take the past of each row, after `cache` was set to their states."""
        self._past = self._past.with_rows(rows, self.cache)


# mlx-lm saves an entry under the name of its class, and finds the class among its own when it loads the entry.
MemoryEntry.__name__ = "ArraysCache"


def memory_entry(entry: object) -> MemoryEntry | None:
    """An entry of a prompt cache as a memory entry; None if it holds no states of a memory.

    mlx-lm loads a memory entry from a file as an `ArraysCache`. That becomes a memory entry in place.
    """
    if not isinstance(entry, ArraysCache) or not all(map(_is_state, entry.cache)):
        return None
    if not isinstance(entry, MemoryEntry):
        entry.__class__ = MemoryEntry
    return cast(MemoryEntry, entry)


def _is_state(state: object) -> bool:
    return (
        isinstance(state, mx.array)
        and state.ndim == 4
        and state.shape[-2] - state.shape[-1] in (0, 1)
        and state.dtype == mx.float32
    )


def _past_by_row(entry: ArraysCache) -> list[Past]:
    """The past of each row of an entry with a memory."""
    return entry._past_by_row() if isinstance(entry, MemoryEntry) else [Start(is_whole=False)] * entry.batch_size


def is_empty(entry: Any) -> bool:
    """Whether an entry of a prompt cache has no text yet."""
    try:
        return bool(entry.empty()) or (isinstance(entry.offset, int) and not entry.offset)
    except (AttributeError, NotImplementedError):
        return False


def _is_trimmable(entry: Any) -> bool:
    """Whether an entry of a prompt cache can be trimmed now. Caches that are only for training do not say."""
    is_trimmable = getattr(entry, "is_trimmable", None)
    return is_trimmable is not None and bool(is_trimmable())
