"""Places in a chat that it can be taken back to, and the way back in the keys and values of a prompt cache."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_deltamem.core.cache import PromptCache

# The states of a model by layer index, as in the last entry of its prompt cache: `[1, H, r, r]` float32 (with a key
# shift `[1, H, r + 1, r]`), and `[1, 0, 0, 0]` for a layer without a memory.
States = list[mx.array]


@dataclass(frozen=True)
class TextMark:
    """A place in the text of a chat: where it is in each entry of the prompt cache.

    Attributes:
        offsets: For each entry that can be cut at its end, its length in tokens at the place; None for other entries.
        copies: For each entry that cannot be cut, a copy of it; None for the others. The whole list is None if no
            copies were made.
        precisions: For each entry that can be cut, as from `precision`; None for the others too.
    """

    offsets: list[int | None]
    copies: list[object | None] | None
    precisions: list[tuple[int, int] | None]

    def without_copies(self) -> "TextMark":
        """The same mark without the copies, which take memory."""
        return replace(self, copies=None)


@dataclass(frozen=True)
class RestorePoint:
    """A place between two messages of a chat, with what is needed to go back to it.

    Attributes:
        states: The memory at this place.
        text: The end of the text at this place; None if it was not kept.
    """

    states: States
    text: TextMark | None

    def without_copies(self) -> "RestorePoint":
        """The same place without the copies of cache entries, which take memory."""
        return replace(self, text=self.text and self.text.without_copies())


def mark(cache: PromptCache) -> TextMark:
    """Mark the present end of the text in a prompt cache. Copied entries share their arrays until one side writes."""
    offsets = [entry.offset if can_be_cut(entry) else None for entry in cache[:-1]]
    copies = [None if can_be_cut(entry) else copy.deepcopy(entry) for entry in cache[:-1]]
    return TextMark(offsets, copies, list(map(precision, cache[:-1])))


def mark_at(cache: PromptCache, tokens: int) -> TextMark:
    """Mark the place after this many tokens, in a prompt cache that has kept all of them as it has them now."""
    offsets = [tokens if can_be_cut(entry) else None for entry in cache[:-1]]
    return TextMark(offsets, None, list(map(precision, cache[:-1])))


def go_back(cache: PromptCache, place: TextMark | None, exactly: bool = True) -> bool:
    """Take the text in a prompt cache back to a mark. The memory is not changed.

    Args:
        cache: The prompt cache.
        place: The mark; None: none was made.
        exactly: Whether the keys and values must be those that the mark was made with. mlx-lm puts quantised ones in
            their place within a turn (`kv_bits`), and the text before the mark then has to run again.

    Returns:
        False if that is not possible; the cache is then unchanged.
    """
    if place is None:
        return False
    entries = list(zip(cache[:-1], place.offsets, place.copies or [None] * len(place.offsets), strict=True))
    for (entry, offset, kept), kind in zip(entries, place.precisions, strict=True):
        is_here = can_be_cut(entry) and (precision(entry) == kind or not exactly)
        possible = kept is not None if offset is None else is_here and entry.offset >= offset
        if not possible:
            return False
    for index, (entry, offset, kept) in enumerate(entries):
        if offset is None:
            cache[index] = copy.deepcopy(kept)
        else:
            entry.trim(entry.offset - offset)
    return True


def take_back_token(cache: PromptCache, states: Sequence[mx.array]) -> bool:
    """Take the last token of a prompt cache back.

    Args:
        cache: The prompt cache.
        states: The memory before that token.

    Returns:
        False if an entry cannot be cut; the cache is then unchanged.
    """
    if not all(can_be_cut(entry) for entry in cache[:-1]):
        return False
    for entry in cache[:-1]:
        entry.trim(1)
    cache[-1].cache = list(states)
    return True


def can_be_cut(entry: object) -> bool:
    """Whether the last tokens of a cache entry can be cut off, however many tokens it has held."""
    # A rotating cache can be cut until it is full. A mark must hold after that too.
    return isinstance(entry, KVCache | QuantizedKVCache)


def precision(entry: object) -> tuple[int, int] | None:
    """How the keys and values of a cache entry are quantised: the bits and the group size; None if they are not."""
    return (entry.bits, entry.group_size) if isinstance(entry, QuantizedKVCache) else None
