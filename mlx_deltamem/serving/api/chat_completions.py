"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.api import sampling
from mlx_deltamem.serving.api.body import Fields, read_object
from mlx_deltamem.serving.api.choice import Choice, collected
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import BadFieldError, JsonReply
from mlx_deltamem.serving.api.logprobs import chat_form
from mlx_deltamem.serving.api.replies import Step, merged, unless_gone
from mlx_deltamem.serving.api.reply_text import Part, ReplyText
from mlx_deltamem.serving.api.selection import Selection, done_headers, is_read_only, narrower, select
from mlx_deltamem.serving.api.stream import DONE, chunk_stream, event
from mlx_deltamem.serving.api.tools import chat_tools
from mlx_deltamem.serving.api.usage import usage
from mlx_deltamem.serving.exchange import Done, Mode, ReplyRequest
from mlx_deltamem.sessions.text.messages import Message, parse_messages


@dataclass(frozen=True)
class _Chat:
    """A request for replies to a chat, with what its answer repeats."""

    request: ReplyRequest
    selection: Selection
    asked: sampling.Asked
    tools: tuple[Mapping[str, Json], ...] | None
    name: str
    created: int

    def requests(self) -> list[ReplyRequest]:
        """One request to the engine for each reply."""
        options = self.request.sampling
        return [
            replace(self.request, sampling=replace(options, seed=sampling.seed_of_choice(options.seed, index)))
            for index in range(self.asked.choices)
        ]


async def chat_completions(context: Context, request: Request) -> Response:
    """Reply to a chat, as one answer or as a stream."""
    chat = _parse(context, await read_object(request), request)
    replies = [context.service.reply(each) for each in chat.requests()]
    dividers = [
        ReplyText(context.service.tokenizer, chat.tools, chat.request.template_options) for _ in range(len(replies))
    ]
    choices = [Choice(divider) for divider in dividers]
    if chat.asked.stream:
        return chunk_stream(
            context, request, _events(chat, choices, merged(replies)), chat.selection.memory, choices[0]
        )
    await unless_gone(request, collected(replies, choices), context.settings.timeout)
    content = {
        **_head(chat, "chat.completion"),
        "choices": [_whole(index, choice, chat) for index, choice in enumerate(choices)],
        "usage": usage([choice.end for choice in choices]),
    }
    return JsonReply(content, headers=done_headers(choices[0].end))


def chat_messages(fields: Fields) -> tuple[Message, ...]:
    """The messages of a chat request.

    Raises:
        BadFieldError: There are none, or one is not a message.
    """
    given = fields.items("messages")
    if given is None:
        raise fields.bad("messages", "a list of messages")
    try:
        return parse_messages(list(map(_with_content, given)))
    except ValueError as error:
        raise BadFieldError("messages", str(error)) from None


def _with_content(message: Json) -> Json:
    """A message with an empty text where OpenAI's API gives none: beside a refusal, or of a tool without a result."""
    if isinstance(message, dict) and message.get("role") in ("assistant", "tool") and message.get("content") is None:
        return {**message, "content": ""}
    return message


def _parse(context: Context, fields: Fields, request: Request) -> _Chat:
    settings = context.settings
    selection = select(fields, request.headers, settings, context.service.model_name)
    asked = sampling.asked(fields, settings, context.service.tokenizer, sampling.chat_logprobs(fields))
    sampling.check_text_format(fields, "response_format")
    tools, messages = chat_tools(fields), chat_messages(fields)
    is_task = is_read_only(messages, settings.read_only_pattern)
    # Only one of several replies could be remembered.
    reads = asked.choices > 1 or is_task
    wanted = ReplyRequest(
        messages=messages,
        memory=selection.memory,
        mode=narrower(selection.mode, Mode.READ) if reads else selection.mode,
        match=selection.match,
        # With the id, the message of a task would count as an edit of the chat's first one.
        chat=None if is_task else selection.chat,
        goes_on=not reads,
        is_streamed=asked.stream,
        tools=tools,
        template_options=sampling.template_options(fields),
        max_tokens=asked.max_tokens,
        stop=asked.stop,
        sampling=asked.sampling,
        top_logprobs=asked.top_logprobs,
    )
    return _Chat(wanted, selection, asked, tools, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))


def _head(chat: _Chat, kind: str) -> dict[str, object]:
    return {"id": chat.name, "object": kind, "created": chat.created, "model": chat.selection.model}


def _whole(index: int, choice: Choice, chat: _Chat) -> Mapping[str, object]:
    """A choice of an answer that is not a stream."""
    message: dict[str, object] = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
    message["refusal"] = None
    if choice.reasoning:
        message["reasoning"] = "".join(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = choice.calls
    logprobs = None if chat.asked.top_logprobs is None else chat_form(choice.pieces)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}


async def _events(
    chat: _Chat, choices: Sequence[Choice], replies: AsyncGenerator[tuple[int, Step], None]
) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream."""
    begun: set[int] = set()
    async with aclosing(replies) as steps:
        async for index, step in steps:
            choice, calls_before = choices[index], len(choices[index].calls)
            parts = choice.take(step)
            if index not in begun:
                begun.add(index)
                yield _chunk(chat, choice, index, {"role": "assistant", "content": ""})
            for delta in _deltas(parts, calls_before):
                yield _chunk(chat, choice, index, delta)
            if isinstance(step, Done):
                yield _chunk(chat, choice, index, {}, choice.finish_reason, step)
    ends = [choice.end for choice in choices]
    if chat.asked.usage:
        yield event({**_head(chat, "chat.completion.chunk"), "choices": [], "usage": usage(ends)})
    yield DONE


def _deltas(parts: Sequence[Part], calls: int) -> list[Mapping[str, object]]:
    """The changes that parts of a reply make. `calls` is the number of calls before them."""
    deltas: list[Mapping[str, object]] = []
    for part in parts:
        if part.call:
            deltas.append({"tool_calls": [{"index": calls, **part.call}]})
            calls += 1
        elif part.text:
            deltas.append({"content": part.text})
        elif part.reasoning:
            deltas.append({"reasoning": part.reasoning})
    return deltas


def _chunk(
    chat: _Chat,
    choice: Choice,
    index: int,
    delta: Mapping[str, object],
    finish_reason: str | None = None,
    done: Done | None = None,
) -> bytes:
    """A chunk with the change of a choice. The last one of a choice says what the memory has now."""
    logprobs = None
    # The chunk of the role has none, so that clients which only read chunks with text see all of them.
    if chat.asked.top_logprobs is not None and choice.pieces and "role" not in delta:
        logprobs = chat_form(choice.pieces)
        choice.pieces.clear()
    changed = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    content = {**_head(chat, "chat.completion.chunk"), "choices": [changed]}
    if chat.asked.usage:
        content["usage"] = None
    elif done is not None:
        content["usage"] = usage([done])
    return event(content)
