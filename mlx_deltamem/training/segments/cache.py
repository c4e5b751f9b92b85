"""Caches for a layer's earlier segments of a history, in arrays that never change, so that gradients flow through.

mlx-lm's caches write into large arrays. For the gradient, MLX would keep a version of such an array for each segment.
"""

from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache, create_attention_mask

from mlx_deltamem.core.cache import PromptCache, make_backbone_cache

Arrays = list[mx.array | None]
# Keys and values by segment, each `[B, heads, tokens, width]`.
Chunks = list[tuple[mx.array, mx.array]]


class SegmentKeys:
    """Keys and values by segment, in the place of mlx-lm's KVCache or RotatingKVCache.

    Args:
        window: The number of tokens that a token attends to, itself included; None: all.

    Attributes:
        offset: The number of tokens so far.
    """

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
        return mx.concatenate(list(all_keys), axis=2), mx.concatenate(list(all_values), axis=2)

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
        """The arrays that every later segment reads as well: the chunks, without tokens outside of the window."""
        if self._window is None:
            return self._chunks
        seen = self._window - 1
        chunks: Chunks = []
        for keys, values in reversed(self._chunks):
            if seen > 0:
                chunks.insert(0, (keys[:, :, -seen:], values[:, :, -seen:]))
            seen -= keys.shape[2]
        return chunks

    @property
    def own(self) -> Arrays:
        """The arrays that only the next segment reads: none."""
        return []

    @property
    def left(self) -> Arrays:
        """The arrays that a call of the layer added."""
        return list(self._chunks[-1])

    def copy(self, shared: Chunks, own: Arrays) -> "SegmentKeys":
        """Return a cache with other arrays, to run the same segment again."""
        other = SegmentKeys(self._window)
        other.offset, other._chunks = self.offset, shared
        return other

    def take(self, shared: Chunks, left: Arrays) -> None:
        """Go on to the next segment with the arrays that a copy's call left."""
        keys, values = cast(list[mx.array], left)
        self._chunks = [*shared, (keys, values)]
        self.offset += keys.shape[2]


class SegmentArrays(ArraysCache):
    """The state of a layer that has no keys and values, such as a recurrent one, with the methods of `SegmentKeys`."""

    @property
    def shared(self) -> Chunks:
        """The arrays that every later segment reads as well: none."""
        return []

    @property
    def own(self) -> Arrays:
        """The arrays that only the next segment reads."""
        return list(self.cache)

    @property
    def left(self) -> Arrays:
        """The arrays that a call of the layer left."""
        return list(self.cache)

    def copy(self, shared: Chunks, own: Arrays) -> "SegmentArrays":
        """Return a cache with other arrays, to run the same segment again."""
        other = SegmentArrays(len(own))
        other.take(shared, own)
        return other

    def take(self, shared: Chunks, left: Arrays) -> None:
        """Go on to the next segment with the arrays that a copy's call left."""
        for index, array in enumerate(left):
            self[index] = array


SegmentCache = SegmentKeys | SegmentArrays


def make_write_cache(model: nn.Module, in_segments: bool) -> PromptCache:
    """Make the cache of an attached model, without its memory entry, for a history that is only written.

    Raises:
        ValueError: The history is read in segments, and a layer has another kind of cache.
    """
    entries = make_backbone_cache(model, model.memory_layout.frozen_class)
    known = [_segment_cache(entry) for entry in entries]
    if in_segments and None in known:
        raise ValueError(
            f"a layer of this model has a {type(entries[known.index(None)]).__name__}, and a history can be read in "
            "segments only with KVCache, RotatingKVCache and ArraysCache; leave the segment size out"
        )
    return [own if new is None else new for own, new in zip(entries, known, strict=True)]


def _segment_cache(entry: object) -> SegmentCache | None:
    # Exact classes, since a subclass may keep other arrays as well.
    if type(entry) is KVCache:
        return SegmentKeys()
    if type(entry) is RotatingKVCache and not entry.keep:
        return SegmentKeys(entry.max_size)
    return SegmentArrays(len(entry.cache)) if type(entry) is ArraysCache else None
