"""POST /v1/messages: Anthropic's Messages API."""

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.options.rule import REPLY_LENGTH
from mlx_deltamem.serving.api import sampling
from mlx_deltamem.serving.api.anthropic_input import anthropic_messages, anthropic_tools
from mlx_deltamem.serving.api.anthropic_output import Blocks
from mlx_deltamem.serving.api.body import read_object
from mlx_deltamem.serving.api.choice import Choice
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import JsonReply, error_body
from mlx_deltamem.serving.api.replies import unless_gone
from mlx_deltamem.serving.api.selection import done_headers, memory_headers, memory_usage, note_headers, select
from mlx_deltamem.serving.api.single import new_choice, parts_of, single_request
from mlx_deltamem.serving.api.stream import EventStream, event
from mlx_deltamem.serving.api.usage import known_tokens
from mlx_deltamem.serving.exchange import Done, ReplyRequest

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def messages(context: Context, request: Request) -> Response:
    """Reply to a chat, as one answer or as a stream."""
    fields = await read_object(request)
    selection = select(fields, request.headers, context.settings, context.service.model_name)
    tools = anthropic_tools(fields)
    wanted = single_request(
        context,
        selection,
        anthropic_messages(fields),
        tools,
        sampling.template_options(fields),
        sampling.sampling(fields, context.settings, context.service.tokenizer),
    )
    tokens = fields.whole("max_tokens", REPLY_LENGTH, context.settings.max_tokens)
    stop = sampling.stop_texts(fields, "stop_sequences")
    is_streamed = fields.flag("stream")
    wanted = replace(wanted, max_tokens=sampling.reply_length(tokens), stop=stop, is_streamed=is_streamed)
    choice, blocks = new_choice(context, wanted, tools), Blocks()
    base = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": selection.model}
    if is_streamed:
        return EventStream(
            _events(context, wanted, choice, blocks, base),
            lambda error: event(error_body(request.scope["path"], error), "error"),
            context.settings.keepalive,
            context.settings.timeout,
            memory_headers(wanted.memory),
            lambda: note_headers(choice.note),
        )
    await unless_gone(request, _run(context, wanted, choice, blocks), context.settings.timeout)
    content = {**base, "content": blocks.blocks, **_end(choice), "usage": _usage(choice.end)}
    return JsonReply(content, headers=done_headers(choice.end))


async def _run(context: Context, wanted: ReplyRequest, choice: Choice, blocks: Blocks) -> None:
    async with aclosing(parts_of(context.service.reply(wanted), choice)) as parts:
        async for part in parts:
            _ = [*blocks.add(part)]
    _ = [*blocks.close()]


async def _events(
    context: Context, wanted: ReplyRequest, choice: Choice, blocks: Blocks, base: Mapping[str, object]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream."""
    usage: Mapping[str, object] = {"input_tokens": 0, "output_tokens": 0}
    start = {**base, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    first = event({"type": "message_start", "message": start}, "message_start")
    begun = False
    async with aclosing(parts_of(context.service.reply(wanted), choice)) as parts:
        async for part in parts:
            if not begun:
                begun = True
                yield first
            for each in blocks.add(part):
                yield each
    if not begun:
        yield first
    for each in blocks.close():
        yield each
    delta = {"type": "message_delta", "delta": _end(choice), "usage": _usage(choice.end)}
    yield event(delta, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


def _end(choice: Choice) -> Mapping[str, str | None]:
    # Clients answer calls only if these are the reason.
    text = None if choice.calls else choice.end.stop_text
    reason = _STOP_REASONS.get(choice.finish_reason, "end_turn")
    return {"stop_reason": reason if text is None else "stop_sequence", "stop_sequence": text}


def _usage(done: Done) -> Mapping[str, object]:
    """The numbers of tokens. Tokens that were known do not count as input in this API."""
    return {
        "input_tokens": done.prompt_tokens - known_tokens(done),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": known_tokens(done),
        "output_tokens": done.reply_tokens,
        "memory": memory_usage(done),
    }
