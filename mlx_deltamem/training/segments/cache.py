"""What a layer keeps of the earlier segments of a history, in arrays that never change: gradients go through them.

mlx-lm's caches write into large arrays, of which every segment would leave a version behind.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache, create_attention_mask

from mlx_deltamem.core.cache import PromptCache, make_backbone_cache

Chunks = list[tuple[mx.array, mx.array]]  # of keys and values, [B, heads, tokens, width]


class SegmentKeys:
    """Keys and values, by segment; to a layer it is what mlx-lm's KVCache or RotatingKVCache is.

    Args:
        window: So many tokens are seen, the one that looks included; None: all.
    """

    own = ()

    def __init__(self, window: int | None = None):
        self.offset = 0
        self._window = window
        self._chunks: Chunks = []

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._chunks = [*self.shared, (keys, values)]
        self.offset += keys.shape[2]
        if len(self._chunks) == 1:
            return keys, values
        all_keys, all_values = zip(*self._chunks, strict=True)
        return mx.concatenate(all_keys, axis=2), mx.concatenate(all_values, axis=2)

    def make_mask(
        self,
        N: int,  # noqa: N803  (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        seen = sum(keys.shape[2] for keys, _ in self.shared)
        window = window_size or self._window
        return create_attention_mask(N, seen, return_array, window if window and seen + N > window else None)

    @property
    def shared(self) -> Chunks:
        """What every later segment reads, too: the chunks, without tokens that are out of sight by then."""
        if self._window is None:
            return self._chunks
        seen, chunks = self._window - 1, []
        for keys, values in reversed(self._chunks):
            if seen > 0:
                chunks.insert(0, (keys[:, :, -seen:], values[:, :, -seen:]))
            seen -= keys.shape[2]
        return chunks

    @property
    def left(self) -> tuple[mx.array, mx.array]:
        """What a call of the layer added."""
        return self._chunks[-1]

    def copy(self, shared: Chunks, own: tuple) -> "SegmentKeys":
        """One for another run of the same segment."""
        other = SegmentKeys(self._window)
        other.offset, other._chunks = self.offset, shared
        return other

    def take(self, shared: Chunks, left: tuple[mx.array, mx.array]) -> None:
        """Go on to the next segment, with what a copy's call left."""
        self._chunks = [*shared, left]
        self.offset += left[0].shape[2]


class SegmentArrays(ArraysCache):
    """The state of a layer without keys and values, in the same terms."""

    shared = ()

    @property
    def own(self) -> list[mx.array | None]:
        """What only the next segment reads."""
        return self.cache

    left = own

    def copy(self, shared: tuple, own: list[mx.array | None]) -> "SegmentArrays":
        other = SegmentArrays(len(own))
        other.cache = list(own)
        return other

    def take(self, shared: tuple, left: list[mx.array | None]) -> None:
        self.cache = left


SegmentCache = SegmentKeys | SegmentArrays


def make_write_cache(model: nn.Module, in_segments: bool) -> PromptCache:
    """A cache for an attached model without its memory, for a history that is only written.

    Raises:
        ValueError: The history is to be read in segments, and a layer has a cache that is not known.
    """
    entries = make_backbone_cache(model, model.memory_layout.frozen_class)
    known = [_segment_cache(entry) for entry in entries]
    if in_segments and None in known:
        raise ValueError(
            f"a layer of this model has a {type(entries[known.index(None)]).__name__}, and a history is read in "
            "segments with KVCache, RotatingKVCache and ArraysCache only; leave the segment size out"
        )
    return [own if new is None else new for own, new in zip(entries, known, strict=True)]


def _segment_cache(entry: object) -> SegmentCache | None:
    # Exact classes, since a subclass may hold more.
    if type(entry) is KVCache:
        return SegmentKeys()
    if type(entry) is RotatingKVCache and not entry.keep:
        return SegmentKeys(entry.max_size)
    return SegmentArrays(len(entry.cache)) if type(entry) is ArraysCache else None
