"""The memory that a request uses: which one, how, and how the answer says so."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from mlx_deltamem.serving.api.body import Fields
from mlx_deltamem.serving.api.errors import BadFieldError
from mlx_deltamem.serving.api.etag import etag, revisions
from mlx_deltamem.serving.api.settings import MEMORY_HEADER, Settings
from mlx_deltamem.serving.exchange import Done, Mode, Revisions
from mlx_deltamem.serving.names import NAME_RULE, is_name
from mlx_deltamem.sessions.text.messages import Message

_READ_ONLY = ":ro"
# The narrowest first.
_NARROWEST = (Mode.OFF, Mode.READ, Mode.WRITE)
# What clients of mlx_lm.server call the model that the server was started with.
_DEFAULT_MODEL = "default_model"
_THREAD_FIELDS = ("conversation", "prompt_cache_key")


@dataclass(frozen=True)
class Selection:
    """The memory of a request.

    Attributes:
        memory: Its name; None: a private memory of the chat, or none is used.
        mode: How it is used.
        match: The revisions that the memory may have, from the header If-Match; None: all.
        chat: The client's id of the chat; None if it gives none.
        model: The name of the model, as the client gave it.
    """

    memory: str | None
    mode: Mode
    match: Revisions
    chat: str | None
    model: str


def memory_name(param: str, text: str) -> str:
    """Check the name of a memory.

    Raises:
        BadFieldError: It is not one.
    """
    if not is_name(text):
        raise BadFieldError(param, f"{param} is {text[:80]!r}; expected {NAME_RULE}", "invalid_memory_name")
    return text


def stable_name(text: str) -> str:
    """A name for an id that another program made: the id if it is a name, else a hash of it."""
    return text if is_name(text) else f"h-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:32]}"


def select(fields: Fields, headers: Headers, settings: Settings, model_name: str) -> Selection:
    """Choose the memory of a request, by the first of: a header, the field `memory`, the model's name, other fields.

    The mode is the narrowest of those that headers, the field `memory` and the model's name give.

    Raises:
        BadFieldError: A name is not allowed, the mode is unknown, or the model is not the server's.
        RefusedError: As from `revisions`.
    """
    model = fields.text("model", "") or model_name
    of_model, mode_of_model = _in_model(model, model_name, settings.given_model)
    of_body, mode_of_body = _in_body(fields)
    of_header, mode_of_header = _in_headers(headers, settings.memory_headers)
    threads = _threads(fields, settings.memory_from)
    memory = of_header or of_body or of_model
    if memory is None:
        memory = _in_fields(fields, settings.memory_from)
    chats = [value for name in settings.memory_headers if not _is_ours(name) and (value := headers.get(name, ""))]
    chat = next((stable_name(value) for value in (*map(_without_mode, chats), *threads) if value), None)
    mode = narrower(mode_of_header, narrower(mode_of_body, mode_of_model))
    memory = None if mode is Mode.OFF else memory
    # A private memory has no ETag.
    match = None if memory is None else revisions(headers.get("if-match"), memory)
    return Selection(memory, mode, match, chat, model)


def is_read_only(messages: Sequence[Message], pattern: str) -> bool:
    """Whether the last message of the user is one of a program's tasks, which must not be remembered."""
    last = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
    return bool(pattern) and re.search(pattern, last) is not None


def narrower(one: Mode, other: Mode) -> Mode:
    """The mode that does less."""
    return min(one, other, key=_NARROWEST.index)


def memory_headers(memory: str | None) -> dict[str, str]:
    """The headers of an answer that are known before the reply."""
    return {} if memory is None else {MEMORY_HEADER: memory}


def note_headers(note: str | None) -> dict[str, str]:
    """The header with a remark of the engine, in ASCII."""
    return {"X-Deltamem-Note": ascii(note)[1:-1][:500]} if note else {}


def done_headers(done: Done) -> dict[str, str]:
    """The headers of an answer that is complete."""
    headers = memory_headers(done.memory)
    headers["X-Deltamem-Revision"] = str(done.revision)
    headers["X-Deltamem-Written"] = str(done.written).lower()
    if done.memory is not None and done.tag is not None:
        headers["ETag"] = etag(done.memory, done.tag)
    return headers | note_headers(done.note)


def memory_usage(done: Done) -> Mapping[str, object]:
    """The object `usage.memory` of an answer."""
    usage = {
        "name": done.memory,
        "revision": done.revision,
        "written": done.written,
        "saved": done.saved,
        "turn": done.turn,
    }
    return {**usage, "note": done.note} if done.note else usage


def _in_model(model: str, *names: str) -> tuple[str | None, Mode]:
    """The memory in a model's name: MODEL@NAME or MODEL@NAME:ro. `names` are the model's; errors show the first."""
    known_names = [name for name in (*names, _DEFAULT_MODEL) if name]
    if model in known_names:
        return None, Mode.WRITE
    for known in known_names:
        if model.startswith(f"{known}@"):
            name, mode = _split(model[len(known) + 1 :])
            return memory_name("model", name), mode
    raise BadFieldError(
        "model",
        f"there is no model {model[:200]!r}; expected {names[0]!r}, also with @MEMORY or @MEMORY:ro behind it",
        "model_not_found",
        404,
    )


def _in_body(fields: Fields) -> tuple[str | None, Mode]:
    memory = fields.nested("memory")
    if memory is None:
        return None, Mode.WRITE
    name = memory.text("name", None)
    mode = memory.text("mode", "write")
    if mode not in {each.value for each in Mode}:
        raise BadFieldError("memory.mode", f"memory.mode is {mode[:80]!r}; expected write, read or off")
    return name if name is None else memory_name("memory.name", name), Mode(mode)


def _in_headers(headers: Headers, names: Sequence[str]) -> tuple[str | None, Mode]:
    found, narrowest = None, Mode.WRITE
    for header in names:
        name, mode = _split(headers.get(header, "").strip())
        narrowest = narrower(narrowest, mode)
        if name and found is None:
            found = memory_name(header, name) if _is_ours(header) else stable_name(name)
    return found, narrowest


def _in_fields(fields: Fields, allowed: Sequence[str]) -> str | None:
    """The memory that one of the fields names which the server was told to use."""
    for field in allowed:
        value = _field(fields, field)
        if value:
            return stable_name(value)
    return None


def _threads(fields: Fields, allowed: Sequence[str]) -> list[str]:
    """The ids of the chat in fields of the body."""
    return [value for field in _THREAD_FIELDS if field in allowed and (value := _field(fields, field))]


def _field(fields: Fields, field: str) -> str:
    if field == "metadata.memory":
        metadata = fields.nested("metadata")
        return metadata.text("memory", "") if metadata else ""
    # OpenAI's field `conversation` is an id, or an object with one.
    if field == "conversation" and isinstance(fields.json(field), dict):
        conversation = fields.nested(field)
        return conversation.text("id", "") if conversation else ""
    return fields.text(field, "")


def _split(text: str) -> tuple[str, Mode]:
    """A name, and the mode that `:ro` behind it gives."""
    name = _without_mode(text)
    return name, Mode.READ if name != text else Mode.WRITE


def _without_mode(text: str) -> str:
    return text.strip().removesuffix(_READ_ONLY)


def _is_ours(header: str) -> bool:
    return header.lower() == MEMORY_HEADER.lower()
