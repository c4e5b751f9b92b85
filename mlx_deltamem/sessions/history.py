"""How much of earlier turns a chat's model sees beside its memory, and the way back in its keys and values."""

import copy
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_deltamem.core.cache import PromptCache

History = str | int
FULL, NONE = "full", "none"


def parse_history(history: str | int) -> History:
    """Check a history: `full`, `none` or a number of tokens (an int, or digits).

    Raises:
        ValueError: It is none of these.
    """
    if history in (FULL, NONE):
        return history
    tokens = int(history) if isinstance(history, str) and history.isascii() and history.isdigit() else history
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"history is {history!r}; expected 'full', 'none' or a number of tokens >= 1")
    return tokens


@dataclass(frozen=True)
class Mark:
    """A place in a chat that its keys and values can go back to.

    Attributes:
        offsets: For each entry of the cache that can be cut at its end, its length there; else None.
        copies: Copies of the entries that cannot; None where they were not made.
    """

    offsets: list[int | None]
    copies: list[object | None] | None

    def without_copies(self) -> "Mark":
        """The mark as it can be kept for long: without what takes memory."""
        return Mark(self.offsets, None)


def mark(cache: PromptCache) -> Mark:
    """Mark the present end of the text in a prompt cache. Copies share their arrays until one side writes."""
    offsets = [entry.offset if can_be_cut(entry) else None for entry in cache[:-1]]
    copies = [None if can_be_cut(entry) else copy.deepcopy(entry) for entry in cache[:-1]]
    return Mark(offsets, copies)


def mark_at(cache: PromptCache, tokens: int) -> Mark:
    """Mark the place after so many tokens, in a cache that kept all of them."""
    return Mark([tokens if can_be_cut(entry) else None for entry in cache[:-1]], None)


def go_back(cache: PromptCache, place: Mark | None) -> bool:
    """Take the text in a prompt cache back to a mark, the memory aside; False where that cannot be done."""
    if place is None:
        return False
    for entry, offset in zip(cache[:-1], place.offsets, strict=True):
        possible = place.copies is not None if offset is None else can_be_cut(entry) and entry.offset >= offset
        if not possible:
            return False
    for index, (entry, offset) in enumerate(zip(cache[:-1], place.offsets, strict=True)):
        if offset is None:
            cache[index] = copy.deepcopy(place.copies[index])
        else:
            entry.trim(entry.offset - offset)
    return True


def take_back_token(cache: PromptCache, states: list[mx.array]) -> bool:
    """Take the last token back, `states` being the memory before it; False where the text cannot be cut."""
    if not all(can_be_cut(entry) for entry in cache[:-1]):
        return False
    for entry in cache[:-1]:
        entry.trim(1)
    cache[-1].cache = list(states)
    return True


def can_be_cut(entry: object) -> bool:
    """Whether the last tokens of a cache entry can be taken off, however many it held."""
    # Rotating caches say so too until they are full; but a mark has to hold after that.
    return isinstance(entry, KVCache | QuantizedKVCache)
