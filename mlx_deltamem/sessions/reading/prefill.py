"""Run the tokens of a chat through a model: read them, and write the memory as they are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, overload

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, generation_stream

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spans import RunningSpans, UnitSource
from mlx_deltamem.core.use import attachment_of, using_spans, writing
from mlx_deltamem.options.rule import STEP
from mlx_deltamem.sessions.text.segments import Segments, part, start_length
from mlx_deltamem.sessions.turns.restore import States

# Called with the number of tokens that are done, and the number of all tokens.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Borders:
    """How a text that may be interrupted between its stretches is written.

    Attributes:
        reached: Called after each stretch with the number of tokens so far, and the memory after them. If the work ends
            there, a call with `done` goes on. Not called if spans of tokens are written, because a span may go on in
            the next stretch.
        done: The number of tokens that are in the memory already: 0, or the end of a stretch (`stretch_ends`).
    """

    reached: Callable[[int, States], None]
    done: int = 0


# The number of tokens of a long text that are seen at once while it is written.
_STRETCH = 2048


@overload
def prefill(
    model: nn.Module,
    cache: PromptCache,
    segments: Segments,
    written: bool | Sequence[bool] = ...,
    step: int = ...,
    progress: Progress | None = ...,
    want_logits: Literal[True] = ...,
) -> mx.array: ...


@overload
def prefill(
    model: nn.Module,
    cache: PromptCache,
    segments: Segments,
    written: bool | Sequence[bool] = ...,
    step: int = ...,
    progress: Progress | None = ...,
    *,
    want_logits: Literal[False],
) -> None: ...


def prefill(
    model: nn.Module,
    cache: PromptCache,
    segments: Segments,
    written: bool | Sequence[bool] = True,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    want_logits: bool = True,
) -> mx.array | None:
    """Run tokens through an attached model as one pass. The memory is the same after it, whatever the step.

    Args:
        model: An attached model.
        cache: Its prompt cache.
        segments: The tokens, at least one.
        written: Whether the memory is written: for all tokens, or for each token.
        step: The largest number of tokens in one call of the model. It does not change the result.
        progress: Called as the pass goes on.
        want_logits: Whether the logits are needed.

    Returns:
        The logits after the last token, `[1, V]`; None if they are not needed.
    """
    flags, spans = _what_is_written(model, segments, written)
    # If logits are needed, the last token runs alone: so no other token's logits are computed.
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
    borders: Borders | None = None,
) -> States:
    """Write a text of any length into a memory. No keys and values are kept.

    A text longer than `seen` is read in stretches. Each stretch begins with the visible start (the tokens before the
    first message), which is read again with the memory as it then is, and is not written again.

    Args:
        model: An attached model.
        states: The memory before the text. It is not changed.
        segments: The tokens.
        written: Whether the memory is written: for all tokens, or for each token.
        seen: The number of tokens in a stretch, without the visible start. None: 2,048, or fewer if the model's window
            is smaller.
        step: The largest number of tokens in one call of the model. It does not change the result.
        progress: Called as the text is read.
        borders: What is done at the ends of stretches; None: nothing.

    Returns:
        The memory after the text.

    Raises:
        ValueError: The visible start fills the model's window, or `borders.done` is not the end of a stretch.
    """
    flags, spans = _what_is_written(model, segments, written)
    start, done = start_length(segments), 0 if borders is None else borders.done
    if done and (spans is not None or done not in stretch_ends(model, segments, seen)):
        raise ValueError(f"{done} tokens are done; expected the end of a stretch, and an adapter that writes tokens")
    for begin, end in _stretches(start, len(flags), seen if seen is not None else _room(model, start)):
        if end <= done:
            continue
        cache = make_prompt_cache(model)
        cache[-1].cache = list(states)
        if begin and start:
            prefill(model, cache, part(segments, slice(0, start)), False, step, want_logits=False)
        with nullcontext() if spans is None else using_spans(model, spans):
            within = progress and shifted(progress, begin, len(flags))
            steps = list(range(0, end - begin, step))
            _run(model, cache, segments.ids[begin:end], flags[begin:end], steps, within)
        states = list(cache[-1].cache)
        if borders is not None and spans is None:
            borders.reached(end, states)
    return states


def stretch_ends(model: nn.Module, segments: Segments, seen: int | None = None) -> list[int]:
    """The numbers of tokens after each stretch in which `write_text` reads a text. `seen` is as there."""
    start = start_length(segments)
    return [end for _, end in _stretches(start, len(segments.ids), seen if seen is not None else _room(model, start))]


def check_step(step: object) -> None:
    """Check a `prefill_step_size`.

    Raises:
        ValueError: It is not a whole number, or out of range.
    """
    STEP.check("prefill_step_size", step)


def window(model: nn.Module) -> int | None:
    """The longest text, in tokens, that a model was made for; None if its configuration does not say."""
    arguments = model.args
    nested = getattr(arguments, "text_config", None) or {}
    found: int | None = getattr(arguments, "max_position_embeddings", None) or nested.get("max_position_embeddings")
    return found


def _run(
    model: nn.Module,
    cache: PromptCache,
    ids: list[int],
    flags: list[bool],
    begins: list[int],
    progress: Progress | None,
) -> mx.array:
    """Run tokens in calls that begin at `begins` (at least one).

    Returns:
        The logits of the last call, `[1, T, V]`.
    """
    tokens, total = mx.array([ids]), len(ids)
    with mx.stream(generation_stream):
        for begin, end in pairwise([*begins, total]):
            if progress is not None:
                progress(begin, total)
            with writing(model, _mask(flags[begin:end])):
                logits: mx.array = model(tokens[:, begin:end], cache=cache)
            mx.eval([entry.state for entry in cache])
            mx.clear_cache()
        if progress is not None:
            progress(total, total)
    return logits


def _mask(flags: list[bool]) -> bool | mx.array:
    """The flags of one call, as `writing` takes them: one bool if all are equal, else a mask `[1, T]`."""
    return any(flags) if all(flags) or not any(flags) else mx.array([flags])


def _what_is_written(
    model: nn.Module, segments: Segments, written: bool | Sequence[bool]
) -> tuple[list[bool], UnitSource | None]:
    """A flag for each token, and the units of the pass if the adapter writes means.

    If there are units, they alone decide what is written: all flags are then True.
    """
    flags = [written] * len(segments.ids) if isinstance(written, bool) else list(written)
    messages = [index if flag else -1 for index, flag in zip(segments.message_ids, flags, strict=True)]
    config = attachment_of(model).config
    if config.memory_write_granularity == "token":
        return flags, None
    spans = RunningSpans([messages], [segments.sentence_ids], config)
    return ([True] * len(flags), spans) if spans.has_units else (flags, None)


def _stretches(start: int, total: int, seen: int) -> Iterator[tuple[int, int]]:
    """The borders of the stretches of a text. The first stretch has the visible start in it."""
    ends = [*range(start + seen, total, seen), total]
    return pairwise([0, *ends])


def _room(model: nn.Module, start: int) -> int:
    """The number of tokens in a stretch behind a visible start of `start` tokens."""
    longest = window(model)
    room = _STRETCH if longest is None else min(_STRETCH, longest - start)
    if room < 1:
        raise ValueError(
            f"the text before the first message is {start} tokens, and the model's window {longest}; shorten it"
        )
    return room


def shifted(progress: Progress, begin: int, total: int) -> Progress:
    """The progress of a part of `total` tokens that begins at `begin`."""
    return lambda done, _: progress(begin + done, total)
