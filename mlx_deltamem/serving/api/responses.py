"""POST /v1/responses, and GET and DELETE /v1/responses/ID."""

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from mlx_lm.tokenizer_utils import TokenizerWrapper
from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.options.rule import REPLY_LENGTH
from mlx_deltamem.serving.api import sampling
from mlx_deltamem.serving.api.body import Fields, read_object
from mlx_deltamem.serving.api.choice import Choice
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import BadFieldError, JsonReply, json_bytes
from mlx_deltamem.serving.api.etag import revisions
from mlx_deltamem.serving.api.kept import KeptResponse
from mlx_deltamem.serving.api.replies import Step, merged, unless_gone
from mlx_deltamem.serving.api.response_input import input_messages, output_messages
from mlx_deltamem.serving.api.response_output import ResponseOutput
from mlx_deltamem.serving.api.selection import (
    done_headers,
    memory_headers,
    memory_usage,
    narrower,
    note_headers,
    select,
)
from mlx_deltamem.serving.api.single import new_choice, parts_of, single_request
from mlx_deltamem.serving.api.stream import EventStream
from mlx_deltamem.serving.api.tools import Tool, function_tool, listed, may_call
from mlx_deltamem.serving.api.usage import known_tokens
from mlx_deltamem.serving.exchange import Done, Mode, RefusedError, ReplyRequest
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.token_ids import token_ids


@dataclass(frozen=True)
class _Wanted:
    """A request for a response, with what its answer repeats.

    Attributes:
        request: The request to the engine.
        before: The chat before the new messages, if the request continues a response.
        store: Whether the response is kept.
        base: The fields of the response that do not change.
        tokenizer: The model's tokenizer.
    """

    request: ReplyRequest
    before: tuple[Message, ...]
    store: bool
    base: Mapping[str, object]
    tokenizer: TokenizerWrapper

    @property
    def name(self) -> str:
        """The id of the response."""
        return str(self.base["id"])


async def create(context: Context, request: Request) -> Response:
    """Reply to some input, as one answer or as a stream."""
    fields = await read_object(request)
    wanted = _parse(context, fields, request)
    choice, output = new_choice(context, wanted.request, _tools(fields)), ResponseOutput()
    events = _events(context, wanted, choice, output)
    if fields.flag("stream"):
        return EventStream(
            events,
            lambda error: _failed(wanted, output, error),
            context.settings.keepalive,
            context.settings.timeout,
            memory_headers(wanted.request.memory),
            lambda: note_headers(choice.note),
        )
    await unless_gone(request, _run(events), context.settings.timeout)
    return JsonReply(_content(wanted, output, choice.end), headers=done_headers(choice.end))


async def get(context: Context, request: Request) -> Response:
    """A response that was kept."""
    kept = context.kept.find(request.path_params["id"])
    if kept is None:
        raise _unknown()
    return Response(kept.content, media_type="application/json")


async def delete(context: Context, request: Request) -> Response:
    """Forget a response. The memory does not change."""
    name: str = request.path_params["id"]
    if not context.kept.drop(name):
        raise _unknown()
    return JsonReply({"id": name, "object": "response.deleted", "deleted": True})


def _unknown() -> RefusedError:
    return RefusedError(404, "response_not_found", "there is no such response; the server keeps the latest ones in RAM")


def _parse(context: Context, fields: Fields, request: Request) -> _Wanted:
    settings = context.settings
    selection = select(fields, request.headers, settings, context.service.model_name)
    if fields.flag("background"):
        raise BadFieldError("background", "background is not supported; leave it out", "unsupported_parameter")
    text = fields.nested("text")
    if text:
        sampling.check_text_format(text, "format")
    metadata = fields.nested("metadata")
    options, messages, tools = sampling.template_options(fields), input_messages(fields), _tools(fields)
    how = sampling.sampling(fields, settings, context.service.tokenizer)
    wanted = single_request(context, selection, messages, tools, options, how)
    before: tuple[Message, ...] = ()
    previous = fields.text("previous_response_id", None)
    if previous is not None:
        kept = context.kept.find(previous)
        if kept is None:
            raise BadFieldError(
                "previous_response_id",
                f"there is no response {previous[:80]!r}; the server keeps the latest ones: send the whole chat",
                "previous_response_not_found",
            )
        if selection.memory is not None and selection.memory != kept.memory:
            raise BadFieldError(
                "previous_response_id", "the previous response belongs to another memory; name that one"
            )
        mode = narrower(wanted.mode, kept.mode)
        memory = None if mode is Mode.OFF else kept.memory
        match = None if memory is None else revisions(request.headers.get("if-match"), memory)
        wanted = replace(wanted, continues=kept.turn, memory=memory, mode=mode, match=match)
        before = kept.messages
    tokens = fields.whole("max_output_tokens", REPLY_LENGTH, None)
    longest = sampling.reply_length(settings.max_tokens if tokens is None else tokens)
    wanted = replace(wanted, max_tokens=longest, is_streamed=fields.flag("stream"))
    base = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": selection.model,
        "instructions": fields.text("instructions", None),
        "max_output_tokens": tokens,
        "previous_response_id": previous,
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "temperature": how.temperature,
        "top_p": how.top_p,
        "tool_choice": fields.json("tool_choice", "auto"),
        "tools": fields.json("tools", []),
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        "metadata": metadata.values if metadata else {},
        "store": fields.flag("store", True),
        "user": fields.text("user", None),
    }
    return _Wanted(wanted, before, fields.flag("store", True), base, context.service.tokenizer)


def _tools(fields: Fields) -> tuple[Tool, ...] | None:
    """The tools of a request. Here a tool has no object `function` around its fields."""
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(listed(fields)))
    return tools if may_call(fields) and tools else None


def _tool(tool: Json, place: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise BadFieldError(
            place, f'{place} is not {{"type": "function", "name", "parameters"}}; the server has no tools itself'
        )
    return function_tool(Fields(tool, place), "parameters")


async def _run(events: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(events) as each:
        async for _ in each:
            pass


async def _events(
    context: Context, wanted: _Wanted, choice: Choice, output: ResponseOutput
) -> AsyncGenerator[bytes, None]:
    """The events of a response. The response is kept before the last one."""
    begun = False
    async with aclosing(parts_of(_reply(context, wanted), choice)) as parts:
        async for part in parts:
            if not begun:
                begun = True
                for each in _begin(wanted, output):
                    yield each
            for each in output.add(part):
                yield each
    done = choice.end
    if not begun:
        for each in _begin(wanted, output):
            yield each
    for each in output.finish(done.finish_reason == "length"):
        yield each
    content = _content(wanted, output, done)
    if wanted.store:
        said = [message for message in wanted.request.messages if message["role"] != "system"]
        chat = (*wanted.before, *said, *output_messages(output.items))
        asked = wanted.request
        kept = KeptResponse(json_bytes(content), done.turn, asked.memory, asked.mode, chat)
        context.kept.keep(wanted.name, kept)
    yield output.event(f"response.{content['status']}", response=content)


async def _reply(context: Context, wanted: _Wanted) -> AsyncGenerator[Step, None]:
    """The steps of a reply. If the memory has lost the turn that it continues, the whole chat is asked for."""
    request = wanted.request
    whole = replace(request, continues=None, messages=(*wanted.before, *request.messages))
    for attempt in (request, whole):
        try:
            async with aclosing(merged([context.service.reply(attempt)])) as steps:
                async for _, step in steps:
                    yield step
            return
        except RefusedError as error:
            # A turn is looked for before the first step.
            if error.code != "turn_not_found" or not wanted.before or attempt is whole:
                raise


def _begin(wanted: _Wanted, output: ResponseOutput) -> list[bytes]:
    response = {**wanted.base, **_state("in_progress"), "output": [], "usage": None}
    return [
        output.event("response.created", response=response),
        output.event("response.in_progress", response=response),
    ]


def _content(wanted: _Wanted, output: ResponseOutput, done: Done) -> Mapping[str, object]:
    cut = done.finish_reason == "length"
    state = _state("incomplete", {"reason": "max_output_tokens"}) if cut else _state("completed")
    usage = {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {"cached_tokens": known_tokens(done)},
        "output_tokens": done.reply_tokens,
        "output_tokens_details": {"reasoning_tokens": len(token_ids(wanted.tokenizer, output.reasoning))},
        "total_tokens": done.prompt_tokens + done.reply_tokens,
        "memory": memory_usage(done),
    }
    return {**wanted.base, **state, "output": output.items, "usage": usage}


def _state(status: str, details: Mapping[str, str] | None = None) -> Mapping[str, object]:
    return {"status": status, "incomplete_details": details, "error": None}


def _failed(wanted: _Wanted, output: ResponseOutput, error: RefusedError) -> bytes:
    """The event for an error after the response began."""
    failure = {"code": error.code, "message": str(error)}
    response = {**wanted.base, **_state("failed"), "error": failure, "output": output.items, "usage": None}
    return output.event("response.failed", response=response)
