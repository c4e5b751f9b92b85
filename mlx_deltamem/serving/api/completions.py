"""POST /v1/completions: plain texts to continue. The memory is only read."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.options.rule import REPLY_LENGTH, Rule
from mlx_deltamem.serving.api import sampling
from mlx_deltamem.serving.api.body import Fields, read_object
from mlx_deltamem.serving.api.choice import Choice, collected
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import BadFieldError, JsonReply
from mlx_deltamem.serving.api.logprobs import text_form
from mlx_deltamem.serving.api.replies import Step, merged, unless_gone
from mlx_deltamem.serving.api.reply_text import ReplyText
from mlx_deltamem.serving.api.selection import Selection, done_headers, memory_usage, narrower, select
from mlx_deltamem.serving.api.stream import DONE, chunk_stream, event
from mlx_deltamem.serving.api.usage import known_tokens
from mlx_deltamem.serving.exchange import Done, Mode, ReplyRequest

_MOST_CHOICES = 32
_LOGPROBS = Rule(int, least=0, most=20)
# As in OpenAI's API, a completion may be empty, and the reply to a chat may not.
_LENGTH = replace(REPLY_LENGTH, least=0)


@dataclass(frozen=True)
class _Texts:
    """A request for completions, with what its answer repeats.

    Attributes:
        requests: One request to the engine for each choice.
        starts: By choice, the text before the reply that the answer repeats.
    """

    requests: list[ReplyRequest]
    starts: list[str]
    selection: Selection
    asked: sampling.Asked
    prompts: int
    name: str
    created: int


async def completions(context: Context, request: Request) -> Response:
    """Continue texts, as one answer or as a stream."""
    texts = _parse(context, await read_object(request), request)
    replies = [context.service.reply(each) for each in texts.requests]
    if texts.asked.max_tokens == 0:
        replies = [_without_text(reply) for reply in replies]
    choices = [Choice(ReplyText(context.service.tokenizer, plain=True)) for _ in replies]
    if texts.asked.stream:
        return chunk_stream(
            context, request, _events(texts, choices, merged(replies)), texts.selection.memory, choices[0]
        )
    await unless_gone(request, collected(replies, choices), context.settings.timeout)
    whole = [
        _choice(texts, choice, index, texts.starts[index] + choice.text, choice.finish_reason)
        for index, choice in enumerate(choices)
    ]
    content = {**_head(texts), "choices": whole, "usage": _usage(texts, choices)}
    return JsonReply(content, headers=done_headers(choices[0].end))


def _parse(context: Context, fields: Fields, request: Request) -> _Texts:
    selection = select(fields, request.headers, context.settings, context.service.model_name)
    top = _top_logprobs(fields)
    asked = sampling.asked(fields, context.settings, context.service.tokenizer, top, _LENGTH)
    prompts = _prompts(fields)
    if len(prompts) * asked.choices > _MOST_CHOICES:
        raise BadFieldError(
            "n", f"there are {len(prompts)} prompts and n is {asked.choices}; expected {_MOST_CHOICES} choices at most"
        )
    if fields.text("suffix", ""):
        raise BadFieldError("suffix", "suffix is not supported; leave it out", "unsupported_parameter")
    if fields.whole("best_of", Rule(int, least=1), 1) > asked.choices:
        raise BadFieldError(
            "best_of", "best_of is larger than n; this server returns every reply: use n", "unsupported_value"
        )
    echo = fields.flag("echo")
    if echo and top is not None:
        raise BadFieldError("echo", "echo with logprobs is not supported; leave one of them out", "unsupported_value")
    requests = [
        ReplyRequest(
            text=prompt,
            memory=selection.memory,
            mode=narrower(selection.mode, Mode.READ),
            match=selection.match,
            chat=selection.chat,
            # The engine chooses a token in any case, and nothing is written.
            max_tokens=asked.max_tokens or 1,
            stop=asked.stop,
            sampling=replace(asked.sampling, seed=sampling.seed_of_choice(asked.sampling.seed, index)),
            top_logprobs=top,
        )
        for prompt in prompts
        for index in range(asked.choices)
    ]
    starts = [(each.text or "") if echo else "" for each in requests]
    name = f"cmpl-{uuid.uuid4().hex}"
    return _Texts(requests, starts, selection, asked, len(prompts), name, int(time.time()))


async def _without_text(reply: AsyncIterator[Step]) -> AsyncGenerator[Step, None]:
    """The end of a reply, which is empty."""
    async with aclosing(merged([reply])) as steps:
        async for _, step in steps:
            if isinstance(step, Done):
                yield replace(step, finish_reason="length", reply_tokens=0, stop_text=None)


def _top_logprobs(fields: Fields) -> int | None:
    """OpenAI has a number here, and clients of mlx_lm.server send true or false."""
    if isinstance(fields.json("logprobs"), bool):
        return sampling.chat_logprobs(fields)
    return fields.whole("logprobs", _LOGPROBS, None)


def _prompts(fields: Fields) -> list[str]:
    given = fields.json("prompt")
    prompts = given if isinstance(given, list) else [given]
    if not prompts:
        raise fields.bad("prompt", "a text, or a list of texts")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise BadFieldError(
            "prompt", "prompt is not a text or a list of texts; token ids are not supported: send texts"
        )
    if not all(texts):
        raise BadFieldError("prompt", "prompt is empty; expected some text: give at least one character")
    return texts


def _head(texts: _Texts) -> dict[str, object]:
    return {"id": texts.name, "object": "text_completion", "created": texts.created, "model": texts.selection.model}


def _choice(
    texts: _Texts, choice: Choice, index: int, text: str, finish_reason: str | None, offset: int = 0
) -> Mapping[str, object]:
    logprobs = None if texts.asked.top_logprobs is None else text_form(choice.pieces, offset)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _usage(texts: _Texts, choices: Sequence[Choice]) -> Mapping[str, object]:
    ends = [choice.end for choice in choices]
    # The choices of one prompt follow each other.
    prompts = ends[:: texts.asked.choices]
    read, written = sum(done.prompt_tokens for done in prompts), sum(done.reply_tokens for done in ends)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(map(known_tokens, prompts))},
        "memory": memory_usage(ends[0]),
    }


async def _events(
    texts: _Texts, choices: Sequence[Choice], replies: AsyncGenerator[tuple[int, Step], None]
) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream."""
    starts, offsets = list(texts.starts), [0] * len(choices)
    async with aclosing(replies) as steps:
        async for index, step in steps:
            choice = choices[index]
            text = starts[index] + "".join(part.text for part in choice.take(step))
            starts[index] = ""
            reason = choice.finish_reason if isinstance(step, Done) else None
            if not text and not reason and not choice.pieces:
                continue
            yield event({**_head(texts), "choices": [_choice(texts, choice, index, text, reason, offsets[index])]})
            offsets[index] += len(text)
            choice.pieces.clear()
    counted = _usage(texts, choices)
    if texts.asked.usage:
        yield event({**_head(texts), "choices": [], "usage": counted})
    yield DONE
