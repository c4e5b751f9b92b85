"""Run the given parts of a chat through a model."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, generation_stream

from mlx_deltamem.cache import PromptCache
from mlx_deltamem.segments import Segments
from mlx_deltamem.spans import RunningSpans
from mlx_deltamem.use import read_only, using_spans

Progress = Callable[[int, int], None]


def read(
    model: nn.Module,
    cache: PromptCache,
    segments: Segments,
    writing: bool = True,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    want_logits: bool = True,
) -> mx.array | None:
    """Run tokens through an attached model as one pass, whatever the step: what is written is the same.

    Args:
        model: An attached model.
        cache: Its prompt cache.
        segments: The tokens (at least one) and their spans.
        writing: Whether the memory is written.
        step: The most tokens of one call; it has no effect on the result.
        progress: Told how many tokens are done, and of how many.
        want_logits: Whether what the model says to the last token is wanted.

    Returns:
        The logits `[1, V]` after the last token; None where they are not wanted.
    """
    ids = mx.array([segments.ids])
    total = ids.shape[1]
    # A last token whose logits are wanted goes alone, so that no other one's are ever computed.
    alone = [total - 1] if want_logits else []
    with ExitStack() as stack:
        stack.enter_context(mx.stream(generation_stream))
        if not writing:
            stack.enter_context(read_only(model))
        elif any(index >= 0 for index in segments.message_ids):
            spans = RunningSpans([segments.message_ids], [segments.sentence_ids], model.attachment.config)
            stack.enter_context(using_spans(model, spans))
        for begin, end in pairwise([*range(0, total - len(alone), step), *alone, total]):
            if progress is not None:
                progress(begin, total)
            logits = model(ids[:, begin:end], cache=cache)
            mx.eval([entry.state for entry in cache])
            mx.clear_cache()
        if progress is not None:
            progress(total, total)
    return logits[:, -1] if want_logits else None


def window(model: nn.Module) -> int | None:
    """The longest text, in tokens, that a model was made for; None where it does not tell."""
    arguments = model.args
    nested = getattr(arguments, "text_config", None) or {}
    return getattr(arguments, "max_position_embeddings", None) or nested.get("max_position_embeddings")
