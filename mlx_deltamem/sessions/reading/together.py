"""Run tokens of several chats in one pass, each with its own memory. The chats have one model."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.use import memory_off, writing
from mlx_deltamem.sessions.turns.restore import States


def can_run_together(cache: PromptCache) -> bool:
    """Whether mlx-lm can merge a prompt cache with others."""
    return all(hasattr(entry, "merge") for entry in cache)


def run_together(
    model: nn.Module,
    caches: Sequence[PromptCache],
    ids: Sequence[Sequence[int]],
    written: Sequence[Sequence[bool]],
    want_logits: bool = True,
) -> mx.array | None:
    """Run tokens of several chats in one pass, for adapters that write single tokens.

    Args:
        model: An attached model.
        caches: The prompt cache of each chat. Afterwards they hold the tokens too.
        ids: The tokens of each chat, at least one; if no logits are wanted, there may be none.
        written: For each token, whether the memory is written.
        want_logits: Whether the logits are needed.

    Returns:
        The logits after the last token of each chat, `[B, V]`; None if they are not needed.
    """
    if not any(map(any, written)) and all(memory_is_empty(cache[-1].cache) for cache in caches):
        with memory_off(model):
            return _run(model, caches, ids, written, want_logits)
    return _run(model, caches, ids, written, want_logits)


def memory_is_empty(states: States) -> bool:
    """Whether the states of all layers are zero."""
    return not mx.stack([mx.any(state) for state in states if state.size] or [mx.array(False)]).any().item()


def _run(
    model: nn.Module,
    caches: Sequence[PromptCache],
    ids: Sequence[Sequence[int]],
    written: Sequence[Sequence[bool]],
    want_logits: bool,
) -> mx.array | None:
    merged = [type(entries[0]).merge(list(entries)) for entries in zip(*caches, strict=True)]
    # The last tokens run alone, so that the logits of the others are not computed.
    end = -1 if want_logits else None
    logits: mx.array | None = None
    with mx.stream(generation_stream):
        _run_padded(model, merged, [row[:end] for row in ids], [row[:end] for row in written])
        if want_logits:
            last = mx.array([row[-1:] for row in ids])
            with writing(model, mx.array([row[-1:] for row in written])):
                logits = model(last, cache=merged)[:, -1]
            mx.eval(logits, [entry.state for entry in merged])
    for index, cache in enumerate(caches):
        cache[:] = [entry.extract(index) for entry in merged]
    return logits


def _run_padded(
    model: nn.Module, merged: PromptCache, ids: Sequence[Sequence[int]], written: Sequence[Sequence[bool]]
) -> None:
    lengths = [len(row) for row in ids]
    longest = max(lengths)
    if not longest:
        return
    padding = [longest - length for length in lengths]
    if any(padding):
        for entry in merged:
            entry.prepare(lengths=lengths, right_padding=padding)
    tokens = mx.array([[*row, *[0] * more] for row, more in zip(ids, padding, strict=True)])
    flags = mx.array([[*row, *[False] * more] for row, more in zip(written, padding, strict=True)])
    with writing(model, flags):
        model(tokens, cache=merged)
    if any(padding):
        for entry in merged:
            entry.finalize()
    mx.eval([entry.state for entry in merged])
    mx.clear_cache()
