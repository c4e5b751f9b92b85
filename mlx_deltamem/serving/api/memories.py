"""The endpoints of memories: list, make, change, delete, fork, reset, undo, remember, export and import."""

from collections.abc import Mapping
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from mlx_deltamem.files.fields import as_whole_number
from mlx_deltamem.serving.api.body import Fields, read_object
from mlx_deltamem.serving.api.chat_completions import chat_messages
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.errors import BadFieldError, JsonReply
from mlx_deltamem.serving.api.etag import etag, revisions
from mlx_deltamem.serving.api.selection import memory_name
from mlx_deltamem.serving.exchange import RefusedError, Revisions
from mlx_deltamem.serving.names import is_name
from mlx_deltamem.serving.service import MemoryInfo
from mlx_deltamem.sessions.text.messages import Message, parse_messages
from mlx_deltamem.sessions.turns.history import parse_history
from mlx_deltamem.sessions.turns.writing import parse_write

_REMEMBERED = ("all", "user", "assistant")


async def list_memories(context: Context, request: Request) -> Response:
    """List the memories."""
    return JsonReply({"object": "list", "data": [_content(memory) for memory in await context.service.memories()]})


async def create(context: Context, request: Request) -> Response:
    """Make an empty memory."""
    fields = await read_object(request)
    name = _new_name(fields)
    return _answer(await context.service.create(name, _history(fields), _write(fields)), 201)


async def get(context: Context, request: Request) -> Response:
    """One memory."""
    return _answer(await context.service.memory(named(request)))


async def change(context: Context, request: Request) -> Response:
    """Change the settings of a memory."""
    fields, name = await read_object(request), named(request)
    history, write = _history(fields), _write(fields)
    return _answer(await context.service.change(name, history, write, _match(request)))


async def delete(context: Context, request: Request) -> Response:
    """Delete a memory and its file."""
    name = named(request)
    await context.service.delete(name, _match(request))
    return JsonReply({"id": name, "object": "memory.deleted", "deleted": True})


async def fork(context: Context, request: Request) -> Response:
    """Copy a memory under a new name."""
    name, new = named(request), _new_name(await read_object(request))
    return _answer(await context.service.fork(name, new, _match(request)), 201)


async def reset(context: Context, request: Request) -> Response:
    """Empty a memory."""
    name = named(request)
    return _answer(await context.service.reset(name, _match(request)))


async def undo(context: Context, request: Request) -> Response:
    """Take the last turn of a memory back."""
    name = named(request)
    return _answer(await context.service.undo(name, _match(request)))


async def remember(context: Context, request: Request) -> Response:
    """Write a text or messages into a memory, without a reply."""
    fields, name = await read_object(request), named(request)
    messages = _to_remember(fields)
    write = fields.text("write", "all")
    if write not in _REMEMBERED:
        raise BadFieldError("write", f"write is {write[:80]!r}; expected one of {', '.join(_REMEMBERED)}")
    return _answer(await context.service.remember(name, messages, write, _match(request)))


async def export(context: Context, request: Request) -> Response:
    """The session file of a memory."""
    name = named(request)
    headers = {"Content-Disposition": f'attachment; filename="{name}.safetensors"', "X-Content-Type-Options": "nosniff"}
    return Response(await context.service.exported(name), headers=headers, media_type="application/octet-stream")


async def import_file(context: Context, request: Request) -> Response:
    """Make or replace a memory from a session file."""
    name, content = named(request), await request.body()
    if not content:
        raise RefusedError(400, "empty_body", "the body is empty; expected a session file: send its bytes")
    return _answer(await context.service.imported(name, content, _match(request)))


def named(request: Request) -> str:
    """The name of the memory in the path.

    Raises:
        RefusedError: It cannot be the name of a memory.
    """
    name: str = request.path_params["name"]
    if not is_name(name):
        # A name in a path is not known, whatever is wrong with it.
        raise RefusedError(404, "memory_not_found", f"there is no memory {name[:80]!r}; GET /v1/memories lists them")
    return name


def _answer(memory: MemoryInfo, status: int = 200) -> Response:
    return JsonReply(_content(memory), status, {"ETag": etag(memory.name, memory.revision)})


def _content(memory: MemoryInfo) -> Mapping[str, object]:
    return {"id": memory.name, "object": "memory", **asdict(memory)}


def _new_name(fields: Fields) -> str:
    name = fields.text("name", None)
    if name is None:
        raise fields.bad("name", "a name for the memory")
    return memory_name("name", name)


def _history(fields: Fields) -> str | int | None:
    value = fields.json("history")
    # In JSON, 100.0 is a whole number too.
    number = as_whole_number(value) if isinstance(value, float) else None
    try:
        return None if value is None else parse_history(value if number is None else number)
    except ValueError as error:
        raise BadFieldError("history", str(error)) from None


def _write(fields: Fields) -> str | None:
    value = fields.json("write")
    try:
        return None if value is None else parse_write(value)
    except ValueError as error:
        raise BadFieldError("write", str(error)) from None


def _to_remember(fields: Fields) -> tuple[Message, ...]:
    text = fields.text("text", None)
    if (text is None) == (not fields.has("messages")):
        raise BadFieldError("text", "expected either text or messages: give one of them")
    if text is None:
        return chat_messages(fields)
    try:
        return parse_messages(text)
    except ValueError as error:
        raise BadFieldError("text", str(error)) from None


def _match(request: Request) -> Revisions:
    return revisions(request.headers.get("if-match"), named(request))
