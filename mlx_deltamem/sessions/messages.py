"""Messages as OpenAI's API, chat templates and mlx-lm have them."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

from mlx_deltamem.files.jsonl import Json

# OpenAI's newer models call the system prompt `developer`. mlx-lm hands that name on, but most chat templates do not
# know it: they refuse such a message, or leave it out without a word.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system", "tool": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")


class Function(TypedDict):
    """A function and its arguments.

    In a `Message`, `arguments` is a dict, which chat templates need. In a call that was found in a reply, it is JSON
    text.
    """

    name: str
    arguments: str | dict[str, Json]


class ToolCall(TypedDict):
    """A tool call in OpenAI's form."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """A message in the form of chat templates; the role is user, assistant, system or tool."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


def parse_messages(given: str | Mapping[str, object] | Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """Check messages in OpenAI's form, and bring them into the form of chat templates.

    Args:
        given: The text of a user's message, one message, or some. Roles are user, assistant, system, developer and
            tool. Content is text or a list of text parts; None for an assistant that calls tools. Keys that a
            `Message` does not have are left out.

    Returns:
        Copies. Text parts are joined, `developer` is `system`, and the arguments of tool calls are dicts.

    Raises:
        ValueError: There is no message, or one has another role, content that is no text or no UTF-8, a user's has
            nothing but white space, or tool calls are not as OpenAI has them.
    """
    if isinstance(given, str):
        return (_message("the message", {"role": "user", "content": given}),)
    if isinstance(given, Mapping):
        return (_message("the message", given),)
    if not _is_list(given):
        raise ValueError(
            f"the messages are {_named(given)}; expected text or a list of messages: "
            "give each message as a dict with role and content"
        )
    if not given:
        raise ValueError("the list of messages is empty; expected some: give at least one message")
    return tuple(_message(f"messages[{index}]", message) for index, message in enumerate(given))


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: object) -> str:
    """A value as JSON.

    Raises:
        ValueError, TypeError, RecursionError: JSON has no such value, or the text is not UTF-8.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def quoted(text: str) -> str:
    """A text as an error message shows it: on one line, and not all of a long one."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _message(place: str, given: object) -> Message:
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {_named(given)}; expected a dict with role and content: give it as one")
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{place} has role {_named(role)}; expected one of {', '.join(_ROLES)}: change its role")
    role = _ROLES[role]
    calls = _tool_calls(place, role, given.get("tool_calls"))
    content = given.get("content")
    message: Message = {"role": role, "content": "" if calls and content is None else _content(place, content)}
    if role == "user" and not message["content"].strip():
        raise ValueError(f"{place} is empty; expected some text: write some, or leave the message out")
    if given.get("name") is not None:
        message["name"] = _text(f"the name of {place}", given["name"])
    if calls:
        message["tool_calls"] = calls
    if given.get("tool_call_id") is not None:
        if role != "tool":
            raise ValueError(f"{place} has a tool_call_id and role {role}; expected role tool: leave one of them out")
        message["tool_call_id"] = _text(f"the tool_call_id of {place}", given["tool_call_id"])
    return message


def _content(place: str, given: object) -> str:
    """The text of content, joined as mlx-lm's server joins it."""
    if not _is_list(given):
        return _text(place if isinstance(given, str) else f"the content of {place}", given)
    texts = []
    for index, part in enumerate(given):
        where = f"part {index} of {place}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS:
            found = f"has type {_named(kind)}" if isinstance(part, Mapping) else f"is {_named(part)}"
            raise ValueError(f"{where} {found}; expected type text: models see text only, leave other parts out")
        texts.append(_text(f"the text of {where}", part.get("text")))
    return "".join(texts)


def _tool_calls(place: str, role: str, given: object) -> list[ToolCall]:
    if given is None:
        return []
    if not _is_list(given):
        raise ValueError(f"the tool_calls of {place} are {_named(given)}; expected a list: give one, or leave them out")
    if given and role != "assistant":
        raise ValueError(f"{place} has tool_calls and role {role}; expected role assistant: leave the calls out")
    return [_tool_call(f"tool call {index} of {place}", call) for index, call in enumerate(given)]


def _tool_call(place: str, given: object) -> ToolCall:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or given.get("type") not in (None, "function"):
        raise ValueError(
            f'{place} is no function call; expected {{"id", "type": "function", "function": {{"name", "arguments"}}}}: '
            "give it in OpenAI's form"
        )
    name = _text(f"the name of {place}", function.get("name"))
    if not name:
        raise ValueError(f"{place} has an empty name; expected a tool's name: name the tool that was called")
    called: Function = {"name": name, "arguments": _arguments(place, function.get("arguments"))}
    if given.get("id") is None:
        return {"type": "function", "function": called}
    return {"id": _text(f"the id of {place}", given["id"]), "type": "function", "function": called}


def _arguments(place: str, given: object) -> dict[str, Json]:
    """The arguments of a call as a dict, as mlx-lm's server gives them to chat templates, which write them as JSON."""
    try:
        found = (json.loads(given) if given.strip() else {}) if isinstance(given, str) else given
        if isinstance(found, Mapping):
            return json.loads(json_text(dict(found)))
        problem = _named(found)
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise ValueError(
        f"the arguments of {place} are no JSON object ({problem}); expected one: give a dict or JSON text of it"
    )


def _text(place: str, given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{place} is {_named(given)}; expected text: give a string")
    if not is_utf8(given):
        raise ValueError(f"{place} is not UTF-8 ({quoted(given)}); expected text: replace the lone surrogates in it")
    # A subclass of str, an enumeration's or an HTML library's, may write itself otherwise.
    return str.__str__(given)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _named(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    return quoted(value) if isinstance(value, str) else f"of type {type(value).__name__}"
