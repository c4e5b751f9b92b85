"""The memory in mlx-lm's prompt cache: one more entry at the end of the list, an `ArraysCache` with the states.

The entry holds one array for each layer of the model: the states `[B, H, r, r]` float32 of a layer with a memory (for
the shape with a key shift, see `DeltaMemConfig.state_shape`), and an empty `[B, 0, 0, 0]` for a layer without one. So
the index of an array is the index of its layer. mlx-lm's own functions for caches (saving, quantising, batching,
splitting) carry the memory along.
"""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import ArraysCache, CacheList

from mlx_deltamem.core.entry import MemoryEntry, is_empty, memory_entry
from mlx_deltamem.core.past import Start, rows_of

# The entries are mlx-lm's cache classes. They have no common public base class, so the entry type is Any.
PromptCache: TypeAlias = list[Any]


@dataclass(frozen=True)
class MemoryLayout:
    """The layout of the caches of an attached model (`model.memory_layout`).

    Attributes:
        frozen_class: The class of the model without a memory.
        shapes: By layer index, `(H, r, r)`, or `(0, 0, 0)` for a layer without a memory.
        backbone_entries: The length of the backbone's prompt cache.
    """

    frozen_class: type[nn.Module]
    shapes: list[tuple[int, int, int]]
    backbone_entries: int


def make_prompt_cache(
    model: nn.Module, max_kv_size: int | None = None, left_padding: Sequence[int] | None = None
) -> PromptCache:
    """Make a prompt cache with an empty memory; for a model without an adapter, make mlx-lm's own cache.

    Use it instead of mlx-lm's function of the same name if you need `max_kv_size` or `left_padding`.

    Args:
        model: A model with or without an adapter.
        max_kv_size: The number of tokens for which keys and values are kept, as in mlx-lm: the first 4 and the last
            ones, and in a padded batch only the last ones. It has no effect on the memory, nor on a model that defines
            its own caches.
        left_padding: The number of padding tokens at the left of each row of a batch. They neither read nor write.

    Raises:
        ValueError: `left_padding` is not a list of counts.
    """
    if left_padding is not None:
        left_padding = _counts(left_padding)
    layout: MemoryLayout | None = getattr(model, "memory_layout", None)
    cache = make_backbone_cache(model, type(model) if layout is None else layout.frozen_class, max_kv_size)
    if left_padding is not None:
        cache = [_left_padded(entry, left_padding) for entry in cache]
    return cache if layout is None else [*cache, _empty_memory(layout.shapes, left_padding)]


def _counts(left_padding: Iterable[SupportsIndex]) -> list[int]:
    """`left_padding` as integers.

    Raises:
        ValueError: It is not a list of counts.
    """
    try:
        counts = [operator.index(count) for count in left_padding]
    except TypeError:
        counts = []
    if not counts or min(counts) < 0:
        raise ValueError(
            f"left_padding is {left_padding!r}; expected a count of padding tokens for each row, such as [2, 0]"
        )
    return counts


def make_backbone_cache(model: nn.Module, frozen_class: type[nn.Module], max_kv_size: int | None = None) -> PromptCache:
    """Make the prompt cache that mlx-lm makes for `model` without a memory; `frozen_class` is its class then."""
    if hasattr(frozen_class, "make_cache"):
        cache: PromptCache = frozen_class.make_cache(model)
        return cache
    # mlx-lm calls the model's `make_cache` if it has one, and that of an attached model would come back here.
    layers_only = nn.Module()
    layers_only.layers = list(model.layers)
    return mlx_lm_cache.make_prompt_cache(layers_only, max_kv_size)


def memory(cache: PromptCache) -> dict[int, mx.array]:
    """Get copies of the states in a prompt cache, by layer index: `[B, H, r, r]` float32 (row = value, column = key).

    Raises:
        ValueError: The cache has no memory.
    """
    # MLX copies the numbers only when one side is changed in place.
    return {layer: mx.array(state) for layer, state in enumerate(_memory_entry(cache).cache) if state.shape[-1]}


def set_memory(cache: PromptCache, states: Mapping[int, mx.array]) -> None:
    """Replace the states of some layers; the states of the other layers stay as they are.

    Args:
        cache: A prompt cache of an attached model.
        states: By layer index, `[B, H, r, r]` (or `[B, r, r]` if H is 1), as `memory` returns them; the cache gets
            copies. A state of one row is that of all rows.

    Raises:
        ValueError: The cache has no memory, a layer has no memory, or a state is not an array, or has a wrong shape or
            number of rows, or numbers that are complex or not finite. The cache is then unchanged.
    """
    entry = _memory_entry(cache)
    replaced = _replaced(entry.cache, states)
    entry.cache = replaced if (batch := _known_batch(cache)) is None else _for_batch(replaced, states, batch)


def _known_batch(cache: PromptCache) -> int | None:
    """The number of rows of the text or of the padding in a prompt cache; None if it may still have any number."""
    entry = _memory_entry(cache)
    is_padded = entry.left_padding is not None or entry.lengths is not None
    has_text = not all(backbone is None or is_empty(backbone) for backbone in cache[:-1])
    return entry.batch_size if is_padded or has_text else None


def _for_batch(replaced: Sequence[mx.array], states: Iterable[int], batch: int) -> list[mx.array]:
    """The states of all layers for a prompt cache with this number of rows; those of the layers `states` are new."""
    for layer in states:
        if (rows := replaced[layer].shape[0]) not in (1, batch):
            raise ValueError(
                f"the state for layer {layer} has {rows} rows and the prompt cache {batch}; expected the same number, "
                "or one row for all of them"
            )
    return [rows_of(state, batch) for state in replaced]


def check_states(present: Sequence[mx.array], states: Mapping[int, mx.array]) -> list[mx.array]:
    """Replace the states of some layers in the memory of one sequence.

    Args:
        present: By layer index, `[1, H, r, r]` float32, or `[1, 0, 0, 0]` for a layer without a memory.
        states: By layer index, `[1, H, r, r]` (or `[1, r, r]` if H is 1), as `memory` returns them.

    Returns:
        A new list in the form of `present`.

    Raises:
        ValueError: A layer has no memory, or a state has a wrong shape, several rows or numbers that are not finite.
    """
    replaced = _replaced(present, states)
    for layer in states:
        if replaced[layer].shape[0] != 1:
            raise ValueError(f"the state for layer {layer} has {replaced[layer].shape[0]} rows; expected one")
    return replaced


def _replaced(present: Sequence[mx.array], states: Mapping[int, mx.array]) -> list[mx.array]:
    """A copy of the list `present` with some states replaced, evaluated."""
    if not isinstance(states, Mapping):
        raise ValueError(f"the states are a {type(states).__name__}; expected arrays by layer index, as `memory` has")
    layers = [layer for layer, state in enumerate(present) if state.shape[-1]]
    replaced = list(present)
    for layer, state in states.items():
        if layer not in layers:
            raise ValueError(f"layer {layer} has no memory; the layers that have one are {layers}")
        if not isinstance(state, mx.array):
            raise ValueError(
                f"the state for layer {layer} is a {type(state).__name__}; expected an array of MLX: mx.array(state)"
            )
        if mx.issubdtype(state.dtype, mx.complexfloating):
            raise ValueError(f"the state for layer {layer} has complex numbers; expected real ones")
        expected = present[layer].shape[1:]
        by_head = state[:, None] if expected[0] == 1 and state.ndim == 3 else state
        if by_head.shape[1:] != expected or not by_head.shape[0]:
            raise ValueError(
                f"the state for layer {layer} is {state.shape}; expected [B, {', '.join(map(str, expected))}]"
                " with at least one row"
            )
        replaced[layer] = by_head.astype(mx.float32)
        if not mx.isfinite(replaced[layer]).all():
            raise ValueError(
                f"the state for layer {layer} has numbers that are not finite; expected finite numbers, so use a state "
                "from another memory"
            )
    if len({state.shape[0] for state in replaced if state.shape[0] > 1}) > 1:
        raise ValueError(
            f"the states have batch sizes {[s.shape[0] for s in replaced]}; expected one size for all layers"
        )
    mx.eval(replaced)
    return replaced


def reset_memory(cache: PromptCache) -> None:
    """Set all states to zero, as at the start of a session; the keys and values of the backbone stay.

    Raises:
        ValueError: The cache has no memory.
    """
    entry = _memory_entry(cache)
    entry.cache = [mx.zeros_like(state) for state in entry.cache]
    mx.eval(entry.cache)


def memory_alone(cache: PromptCache) -> PromptCache:
    """A prompt cache with the same memory and without keys and values, for texts that take a single call each."""
    return [*[None] * (len(cache) - 1), cache[-1]]


def split_memory(cache: PromptCache, layout: MemoryLayout) -> tuple[PromptCache | None, MemoryEntry]:
    """Split a prompt cache into the backbone's part and the memory.

    Returns:
        The backbone's part, or None if it keeps no keys and values (`memory_alone`); and the entry of the memory.

    Raises:
        ValueError: The cache has no memory, or it has the memory of another adapter.
    """
    expected = layout.backbone_entries
    if len(cache) == expected and isinstance(cache[-1], CacheList) and len(cache[-1].caches) == 2:
        # A cache that shares its list with that of a draft model (`drafting.py`).
        cache = [*cache[:-1], *cache[-1].caches]
    last = cache[-1] if len(cache) == expected + 1 else None
    if isinstance(last, MemoryEntry) and last.holds(layout.shapes):
        return _backbone(cache), last
    entry = memory_entry(last)
    if entry is None:
        raise ValueError(
            f"the prompt cache has {len(cache)} entries and no memory; expected {expected} and a memory: make it with "
            "mlx_deltamem.make_prompt_cache(model)"
        )
    found = [state.shape[1:] for state in entry.cache]
    if found != layout.shapes:
        raise ValueError(
            f"the prompt cache holds the memory of another adapter: states {_by_shape(found)}, while the attached one "
            f"has {_by_shape(layout.shapes)}; make a new cache with mlx_deltamem.make_prompt_cache(model)"
        )
    return _backbone(cache), entry


def _backbone(cache: PromptCache) -> PromptCache | None:
    # Not a list of None, because some models treat its items as caches.
    return None if all(backbone is None for backbone in cache[:-1]) else cache[:-1]


def _by_shape(shapes: Sequence[tuple[int, ...]]) -> str:
    """For messages: the shapes of the states, and the number of layers that have each shape."""
    counts = Counter(shapes)
    return ", ".join(f"{shape} in {count} of {len(shapes)} layers" for shape, count in counts.items() if shape[-1])


def _memory_entry(cache: PromptCache) -> MemoryEntry:
    entry = memory_entry(cache[-1]) if cache else None
    if entry is None:
        raise ValueError(
            "the prompt cache has no memory; attach an adapter and make it with mlx_deltamem.make_prompt_cache(model)"
        )
    return entry


def _empty_memory(shapes: Sequence[tuple[int, int, int]], left_padding: list[int] | None) -> MemoryEntry:
    batch = 1 if left_padding is None else len(left_padding)
    entry = MemoryEntry(len(shapes), left_padding)
    entry.cache = [mx.zeros((batch, *shape)) for shape in shapes]
    entry.start(Start(is_whole=True))
    # Any thread can use arrays that are evaluated.
    mx.eval(entry.cache)
    return entry


def _left_padded(entry: Any, left_padding: list[int]) -> Any:
    """The form for padded batches of an empty entry of a prompt cache."""
    if isinstance(entry, ArraysCache):
        return ArraysCache(len(entry.cache), left_padding)
    if isinstance(entry, CacheList):
        return CacheList(*(_left_padded(inner, left_padding) for inner in entry.caches))
    batch = type(entry).merge([entry] * len(left_padding))
    batch.prepare(left_padding=left_padding)
    return batch
