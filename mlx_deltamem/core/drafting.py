"""The prompt cache of mlx-lm's speculative decoding: of an attached model and of the model that drafts for it."""

import mlx.nn as nn
from mlx_lm.models.cache import CacheList

from mlx_deltamem.core.cache import PromptCache, split_memory
from mlx_deltamem.core.use import attachment_of


def with_draft(model: nn.Module, cache: PromptCache, draft_cache: PromptCache) -> PromptCache:
    """Join the prompt caches of an attached model and of its draft model, for mlx-lm's speculative decoding.

    Pass the result as `prompt_cache` to `mlx_lm.stream_generate(..., draft_model=...)`. It shares the entries of both
    caches: afterwards, `cache` holds the text and the memory. Without a `prompt_cache`, mlx-lm makes both caches itself
    and this function is not needed. Do not use it with `kv_bits`: mlx-lm then goes on with entries of its own.

    Args:
        model: The attached model.
        cache: Its prompt cache.
        draft_cache: The prompt cache of the draft model, from mlx-lm's or this project's `make_prompt_cache`.

    Raises:
        ValueError: The model has no adapter or has layers without an entry, or `cache` has no memory of this model or
            cannot be trimmed.
    """
    attachment_of(model)
    split_memory(cache, model.memory_layout)
    # mlx-lm cuts the list after as many entries as the model has layers. So the memory must be in the last of them.
    if len(model.layers) != len(cache) - 1:
        raise ValueError(
            f"the model has {len(model.layers)} layers and its prompt cache {len(cache) - 1} entries; mlx-lm's "
            "speculative decoding expects an entry for each layer, so use the model without a draft model"
        )
    if fixed := sorted({type(entry).__name__ for entry in cache if not entry.is_trimmable()}):
        raise ValueError(
            f"the prompt cache has {', '.join(fixed)} that cannot be trimmed; speculative decoding takes tokens back, "
            "so use the model without a draft model"
        )
    return [*cache[:-2], CacheList(cache[-2], cache[-1]), *draft_cache]
