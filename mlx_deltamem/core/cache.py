"""The memory inside mlx-lm's prompt cache: one more entry at the end of the list, an `ArraysCache` of states.

The entry holds one array for each layer of the model: the states `[B, H, r, r]` float32 of an attached layer, and an
empty `[B, 0, 0, 0]` for a layer without a memory. So an index in the entry is a layer's index, and everything mlx-lm
does with caches (saving, quantising, batching, splitting) carries the memory along.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import ArraysCache, CacheList

# The entries are mlx-lm's cache classes. They have no common public base class, so the entry type is Any.
PromptCache: TypeAlias = list[Any]


@dataclass(frozen=True)
class MemoryLayout:
    """What an attached model tells about its caches (`model.memory_layout`).

    Attributes:
        frozen_class: The model's class without a memory.
        shapes: By layer, `(H, r, r)`, or `(0, 0, 0)` for a layer without a memory.
        backbone_entries: The length of the backbone's own prompt cache.
    """

    frozen_class: type[nn.Module]
    shapes: list[tuple[int, int, int]]
    backbone_entries: int


def make_prompt_cache(
    model: nn.Module, max_kv_size: int | None = None, left_padding: Sequence[int] | None = None
) -> PromptCache:
    """Make a prompt cache with an empty memory; for a model without a memory, mlx-lm's own cache.

    Use it instead of mlx-lm's function of the same name wherever `max_kv_size` or `left_padding` is needed.

    Args:
        model: A model, attached or not.
        max_kv_size: Keep this many tokens of keys and values (and the first 4), as in mlx-lm: a model that brings
            caches of its own keeps those. The memory has no such limit.
        left_padding: The number of padding tokens at the left of each row of a batch; they neither read nor write.

    Raises:
        ValueError: `left_padding` is not a list of counts.
    """
    if left_padding is not None:
        left_padding = [operator.index(count) for count in left_padding]
        if not left_padding or min(left_padding) < 0:
            raise ValueError(f"left_padding is {left_padding}; expected a count of padding tokens for each row")
    layout: MemoryLayout | None = getattr(model, "memory_layout", None)
    cache = make_backbone_cache(model, type(model) if layout is None else layout.frozen_class, max_kv_size)
    if left_padding is not None:
        cache = [_left_padded(entry, left_padding) for entry in cache]
    return cache if layout is None else [*cache, _empty_memory(layout.shapes, left_padding)]


def make_backbone_cache(model: nn.Module, frozen_class: type[nn.Module], max_kv_size: int | None = None) -> PromptCache:
    """The cache that mlx-lm makes for `model` where it is of `frozen_class`."""
    if hasattr(frozen_class, "make_cache"):
        return frozen_class.make_cache(model)
    return mlx_lm_cache.make_prompt_cache(SimpleNamespace(layers=model.layers), max_kv_size)


def memory(cache: PromptCache) -> dict[int, mx.array]:
    """The states in a prompt cache, by layer index: `[B, H, r, r]` float32 (row = value, column = key).

    Raises:
        ValueError: The cache has no memory.
    """
    return {layer: state for layer, state in enumerate(_memory_entry(cache).cache) if state.shape[-1]}


def set_memory(cache: PromptCache, states: Mapping[int, mx.array]) -> None:
    """Replace the states of some layers; the others stay.

    Args:
        cache: A prompt cache of an attached model.
        states: By layer index, `[B, H, r, r]` (or `[B, r, r]` where H is 1), as `memory` gives them.

    Raises:
        ValueError: The cache has no memory, or not for such a layer or of such a shape; nothing is changed then.
    """
    entry = _memory_entry(cache)
    entry.cache = _replaced(entry.cache, states)


def check_states(present: Sequence[mx.array], states: Mapping[int, mx.array]) -> list[mx.array]:
    """The memory of one sequence with the states of some layers replaced.

    Args:
        present: By layer index, `[1, H, r, r]` float32, or `[1, 0, 0, 0]` for a layer without a memory.
        states: By layer index, `[1, H, r, r]` (or `[1, r, r]` where H is 1), as `memory` gives them.

    Returns:
        By layer index, as `present`, which stays as it is.

    Raises:
        ValueError: A layer has no memory, or a state another shape, several rows or numbers that are not finite.
    """
    replaced = _replaced(present, states)
    for layer in states:
        if replaced[layer].shape[0] != 1:
            raise ValueError(f"the state for layer {layer} has {replaced[layer].shape[0]} rows; expected one")
        if not mx.isfinite(replaced[layer]).all():
            raise ValueError(f"the state for layer {layer} has numbers that are not finite; use another memory")
    return replaced


def _replaced(present: Sequence[mx.array], states: Mapping[int, mx.array]) -> list[mx.array]:
    """States by layer index, some of them replaced, all evaluated."""
    layers = [layer for layer, state in enumerate(present) if state.shape[-1]]
    replaced = list(present)
    for layer, state in states.items():
        if layer not in layers:
            raise ValueError(f"layer {layer} has no memory; the layers that have one are {layers}")
        expected = present[layer].shape[1:]
        by_head = state[:, None] if expected[0] == 1 and state.ndim == 3 else state
        if by_head.shape[1:] != expected:
            raise ValueError(
                f"the state for layer {layer} is {state.shape}; expected [B, {', '.join(map(str, expected))}]"
            )
        replaced[layer] = by_head.astype(mx.float32)
    if len({state.shape[0] for state in replaced if state.shape[0] > 1}) > 1:
        raise ValueError(
            f"the states have batch sizes {[s.shape[0] for s in replaced]}; expected one size for all layers"
        )
    mx.eval(replaced)
    return replaced


def reset_memory(cache: PromptCache) -> None:
    """Make every state zero, as at the start of a session; keys and values stay.

    Raises:
        ValueError: The cache has no memory.
    """
    entry = _memory_entry(cache)
    entry.cache = [mx.zeros_like(state) for state in entry.cache]
    mx.eval(entry.cache)


def memory_alone(cache: PromptCache) -> PromptCache:
    """The same memory in a prompt cache that keeps no keys and values, for texts that are run in a single call each."""
    return [*[None] * (len(cache) - 1), cache[-1]]


def split_memory(cache: PromptCache, layout: MemoryLayout) -> tuple[PromptCache | None, ArraysCache]:
    """The backbone's part of a prompt cache, None where it is to keep no keys and values, and the memory entry.

    Raises:
        ValueError: The cache has no memory, or the memory of another adapter.
    """
    expected = layout.backbone_entries
    if len(cache) != expected + 1 or not _is_memory(cache[-1]):
        raise ValueError(
            f"the prompt cache has {len(cache)} entries and no memory; expected {expected} and a memory: make it with "
            "mlx_deltamem.make_prompt_cache(model) (mlx-lm's speculative decoding cannot be used with a memory)"
        )
    found = [state.shape[1:] for state in cache[-1].cache]
    if found != layout.shapes:
        raise ValueError(
            f"the prompt cache holds the memory of another adapter: states {_by_shape(found)}, while the attached one "
            f"has {_by_shape(layout.shapes)}; make a new cache with mlx_deltamem.make_prompt_cache(model)"
        )
    # Not a list of None, which some models take for caches.
    return (None if all(entry is None for entry in cache[:-1]) else cache[:-1]), cache[-1]


def _by_shape(shapes: list[tuple[int, ...]]) -> str:
    counts = Counter(shapes)
    return ", ".join(f"{shape} in {count} of {len(shapes)} layers" for shape, count in counts.items() if shape[-1])


def _memory_entry(cache: PromptCache) -> ArraysCache:
    if not cache or not _is_memory(cache[-1]):
        raise ValueError(
            "the prompt cache has no memory; attach an adapter and make it with mlx_deltamem.make_prompt_cache(model)"
        )
    return cache[-1]


def _is_memory(entry: object) -> bool:
    return isinstance(entry, ArraysCache) and all(
        isinstance(state, mx.array)
        and state.ndim == 4
        and state.shape[-2] - state.shape[-1] in (0, 1)
        and state.dtype == mx.float32
        for state in entry.cache
    )


def _empty_memory(shapes: list[tuple[int, int, int]], left_padding: list[int] | None) -> ArraysCache:
    batch = 1 if left_padding is None else len(left_padding)
    entry = ArraysCache(len(shapes), left_padding)
    entry.cache = [mx.zeros((batch, *shape)) for shape in shapes]
    # What is evaluated can be used by any thread.
    mx.eval(entry.cache)
    return entry


def _left_padded(entry: object, left_padding: list[int]) -> object:
    """The batch form of an empty cache entry."""
    if isinstance(entry, ArraysCache):
        return ArraysCache(len(entry.cache), left_padding)
    if isinstance(entry, CacheList):
        return CacheList(*(_left_padded(inner, left_padding) for inner in entry.caches))
    batch = type(entry).merge([entry] * len(left_padding))
    batch.prepare(left_padding=left_padding)
    return batch
