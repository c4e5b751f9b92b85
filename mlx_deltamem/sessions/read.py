"""Run the given parts of a chat through a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, generation_stream

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spans import RunningSpans, UnitSource
from mlx_deltamem.core.use import using_spans, writing
from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.sessions.turn import States, part

Progress = Callable[[int, int], None]

# Tokens of a long text that are seen at once while it is written.
_STRETCH = 2048


def read(
    model: nn.Module,
    cache: PromptCache,
    segments: Segments,
    written: bool | Sequence[bool] = True,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    want_logits: bool = True,
) -> mx.array | None:
    """Run tokens through an attached model as one pass, whatever the step: what is written is the same.

    Args:
        model: An attached model.
        cache: Its prompt cache.
        segments: The tokens (at least one) and their spans.
        written: Whether the memory is written, for all tokens or for each.
        step: The most tokens of one call; it has no effect on the result.
        progress: Told how many tokens are done, and of how many.
        want_logits: Whether what the model says to the last token is wanted.

    Returns:
        The logits `[1, V]` after the last token; None where they are not wanted.
    """
    flags, spans = _what_is_written(model, segments, written)
    # A last token whose logits are wanted goes alone, so that no other one's are ever computed.
    alone = [len(flags) - 1] if want_logits else []
    steps = [*range(0, len(flags) - len(alone), step), *alone]
    with nullcontext() if spans is None else using_spans(model, spans):
        logits = _run(model, cache, segments.ids, flags, steps, progress)
    return logits[:, -1] if want_logits else None


def write_text(
    model: nn.Module,
    states: States,
    segments: Segments,
    written: bool | Sequence[bool] = True,
    seen: int | None = None,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
) -> States:
    """Write a text of any length into a memory, and keep no keys and values of it.

    A text longer than `seen` is read in stretches. Each begins with the visible start, the tokens before the first
    message, which is read with the memory of now and not written again.

    Args:
        model: An attached model.
        states: The memory, by layer index; it stays as it is.
        segments: The tokens and their spans.
        written: Whether the memory is written, for all tokens or for each.
        seen: The most tokens of the text that are seen at once, beside the start; None: 2,048, or fewer where the
            model's window is smaller.
        step: The most tokens of one call; it has no effect on the result.
        progress: Told how many tokens are done, and of how many.

    Returns:
        The memory after it.

    Raises:
        ValueError: The text before the first message fills the model's window.
    """
    flags, spans = _what_is_written(model, segments, written)
    start = start_length(segments)
    for begin, end in _stretches(start, len(flags), seen if seen is not None else _room(model, start)):
        cache = make_prompt_cache(model)
        cache[-1].cache = list(states)
        if begin and start:
            read(model, cache, part(segments, slice(0, start)), False, step, want_logits=False)
        with nullcontext() if spans is None else using_spans(model, spans):
            told = progress and _shifted(progress, begin, len(flags))
            steps = list(range(0, end - begin, step))
            _run(model, cache, segments.ids[begin:end], flags[begin:end], steps, told)
        states = list(cache[-1].cache)
    return states


def start_length(segments: Segments) -> int:
    """How many tokens come before the first message of a chat: the visible start, the system prompt's."""
    return next((place for place, message in enumerate(segments.message_ids) if message >= 0), 0)


def window(model: nn.Module) -> int | None:
    """The longest text, in tokens, that a model was made for; None where it does not tell."""
    arguments = model.args
    nested = getattr(arguments, "text_config", None) or {}
    return getattr(arguments, "max_position_embeddings", None) or nested.get("max_position_embeddings")


def _run(
    model: nn.Module,
    cache: PromptCache,
    ids: list[int],
    flags: list[bool],
    begins: list[int],
    progress: Progress | None,
) -> mx.array:
    """Run tokens in calls that begin at `begins`; returns the logits of the last call."""
    tokens, total = mx.array([ids]), len(ids)
    with mx.stream(generation_stream):
        for begin, end in pairwise([*begins, total]):
            if progress is not None:
                progress(begin, total)
            with writing(model, _mask(flags[begin:end])):
                logits = model(tokens[:, begin:end], cache=cache)
            mx.eval([entry.state for entry in cache])
            mx.clear_cache()
        if progress is not None:
            progress(total, total)
    return logits


def _mask(flags: list[bool]) -> bool | mx.array:
    """Flags of one call as `writing` takes them: one bool if all are alike, else a mask `[1, T]`."""
    return any(flags) if all(flags) or not any(flags) else mx.array([flags])


def _what_is_written(
    model: nn.Module, segments: Segments, written: bool | Sequence[bool]
) -> tuple[list[bool], UnitSource | None]:
    """A flag for each token, and for adapters that write means the units of the pass.

    Where there are units, they alone say what is written; all flags are True then.
    """
    flags = [written] * len(segments.ids) if isinstance(written, bool) else list(written)
    messages = [index if flag else -1 for index, flag in zip(segments.message_ids, flags, strict=True)]
    config = model.attachment.config
    if config.memory_write_granularity == "token":
        return flags, None
    spans = RunningSpans([messages], [segments.sentence_ids], config)
    return ([True] * len(flags), spans) if spans.has_units else (flags, None)


def _stretches(start: int, total: int, seen: int) -> Iterator[tuple[int, int]]:
    """The parts of a text that are read at once; the first has the start in it."""
    ends = [*range(start + seen, total, seen), total]
    return pairwise([0, *ends])


def _room(model: nn.Module, start: int) -> int:
    longest = window(model)
    room = _STRETCH if longest is None else min(_STRETCH, longest - start)
    if room < 1:
        raise ValueError(
            f"the text before the first message is {start} tokens, and the model's window {longest}; shorten it"
        )
    return room


def _shifted(progress: Progress, begin: int, total: int) -> Progress:
    return lambda done, _: progress(begin + done, total)
