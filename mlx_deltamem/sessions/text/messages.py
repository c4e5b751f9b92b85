"""Messages of a chat: the form that OpenAI's API uses, and the form that chat templates use."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict, TypeGuard

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.sessions.text.json_text import AROUND_ARGUMENTS, json_text

# OpenAI's newer models call the system prompt `developer`. mlx-lm passes that name on, but most chat templates do not
# know it: they refuse such a message, or leave it out silently.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system", "tool": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_CALL_FORM = '{"id", "type": "function", "function": {"name", "arguments"}}'


class Function(TypedDict):
    """The function that a tool call names, with its arguments.

    `arguments` is a dict in a `Message`, because chat templates need a dict. It is JSON text in a call that was found
    in a reply (`ChatSession.tool_calls`), as in OpenAI's API.
    """

    name: str
    arguments: str | dict[str, Json]


class ToolCall(TypedDict):
    """A tool call in OpenAI's form."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """A message in the form of chat templates. The role is user, assistant, system or tool."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


# Messages as a user of this package gives them: the text of a user's message, one message in OpenAI's form, or several.
GivenMessages = str | Mapping[str, object] | Sequence[Mapping[str, object]]


def parse_messages(given: object, places: Sequence[str] = ()) -> tuple[Message, ...]:
    """Check messages in OpenAI's form and convert them to the form of chat templates.

    Args:
        given: Messages as in `GivenMessages`; anything else is refused. The roles are user, assistant, system,
            developer and tool. The content is text or a list of text parts; it may be None in a message of the
            assistant that calls tools. Keys that a `Message` does not have are left out.
        places: What errors call each message of a list; empty: `messages[0]` and so on.

    Returns:
        Copies. Text parts are joined, `developer` becomes `system`, and the arguments of tool calls are dicts.

    Raises:
        ValueError: There is no message, or a message has another role, content that is not text or not UTF-8, or tool
            calls in another form; or a user's message has only white space.
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
    places = places or [f"messages[{index}]" for index in range(len(given))]
    return tuple(_message(place, message) for place, message in zip(places, given, strict=True))


def said_messages(given: object) -> tuple[Message, ...]:
    """Check messages that the model can reply to, and convert them as `parse_messages` does.

    Raises:
        ValueError: As `parse_messages`; or one of them is a message of the assistant.
    """
    messages = parse_messages(given)
    if any(message["role"] == "assistant" for message in messages):
        raise ValueError("there is a message of the assistant among those to reply to; remember() writes transcripts")
    return messages


def system_prompt(text: object) -> str:
    """Check a system prompt. It may be empty.

    Raises:
        ValueError: It is not text, or not UTF-8.
    """
    if not isinstance(text, str):
        raise ValueError(f"the system prompt is of type {type(text).__name__}; expected text")
    if not is_utf8(text):
        raise ValueError("the system prompt is not UTF-8 (it has half a character, a lone surrogate); expected text")
    return text


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. A text with lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def call_arguments(call: ToolCall) -> object:
    """The arguments of a tool call as a JSON value: clients and models also write them as JSON text.

    Raises:
        ValueError: The text is not JSON.
    """
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def as_generated(message: Message) -> tuple[ToolCall, ...]:
    """The tool calls of a message, with the arguments as JSON text: a reply that was generated has them so."""
    calls = copy.deepcopy(message.get("tool_calls", []))
    for call in calls:
        call["function"]["arguments"] = json_text(call["function"]["arguments"])
    return tuple(calls)


def quoted(text: str) -> str:
    """A text for an error message: on one line, and shortened if it is long."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _message(place: str, given: object) -> Message:
    """Check and convert one message. `place` names it in errors."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {_named(given)}; expected a dict with role and content: give it as one")
    given_role = given.get("role")
    if not isinstance(given_role, str) or given_role not in _ROLES:
        raise ValueError(f"{place} has role {_named(given_role)}; expected one of {', '.join(_ROLES)}: change its role")
    role = _ROLES[given_role]
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
    """The text of a message's content. Text parts are joined as mlx-lm's server joins them."""
    if not _is_list(given):
        return _text(place if isinstance(given, str) else f"the content of {place}", given)
    return "".join(_part(f"part {index} of {place}", part) for index, part in enumerate(given))


def _part(place: str, given: object) -> str:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or kind not in _TEXT_PARTS:
        found = f"has type {_named(kind)}" if isinstance(given, Mapping) else f"is {_named(given)}"
        raise ValueError(f"{place} {found}; expected type text: models see text only, leave other parts out")
    return _text(f"the text of {place}", given.get("text"))


def _tool_calls(place: str, role: str, given: object) -> list[ToolCall]:
    if given is None:
        return []
    if not _is_list(given):
        raise ValueError(f"the tool_calls of {place} are {_named(given)}; expected a list: give one, or leave them out")
    if given and role != "assistant":
        raise ValueError(f"{place} has tool_calls and role {role}; expected role assistant: leave the calls out")
    return [_tool_call(f"tool call {index} of {place}", call) for index, call in enumerate(given)]


def _tool_call(place: str, given: object) -> ToolCall:
    call = given if isinstance(given, Mapping) else {}
    function = call.get("function")
    if not isinstance(function, Mapping) or call.get("type") not in (None, "function"):
        raise ValueError(f"{place} is not a function call; expected {_CALL_FORM}: give it in OpenAI's form")
    name = _text(f"the name of {place}", function.get("name"))
    if not name:
        raise ValueError(f"{place} has an empty name; expected a tool's name: name the tool that was called")
    called: Function = {"name": name, "arguments": _arguments(place, function.get("arguments"))}
    if call.get("id") is None:
        return {"type": "function", "function": called}
    return {"id": _text(f"the id of {place}", call["id"]), "type": "function", "function": called}


def _arguments(place: str, given: object) -> dict[str, Json]:
    """The arguments of a call as a dict. Chat templates need a dict, and mlx-lm's server gives them one."""
    try:
        found = (json.loads(given) if given.strip() else {}) if isinstance(given, str) else given
        if isinstance(found, Mapping):
            arguments: dict[str, Json] = json.loads(json_text(dict(found), AROUND_ARGUMENTS))
            return arguments
        problem = _named(found)
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise ValueError(
        f"the arguments of {place} are not a JSON object ({problem}); expected one: give a dict or JSON text of it"
    )


def _text(place: str, given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{place} is {_named(given)}; expected text: give a string")
    if not is_utf8(given):
        raise ValueError(f"{place} is not UTF-8 ({quoted(given)}); expected text: replace the lone surrogates in it")
    # A subclass of str (an enumeration, an HTML library's text) may define its own __str__.
    return str.__str__(given)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _named(value: object) -> str:
    """A value for an error message: its text if it is short to say, else its type."""
    if value is None or isinstance(value, bool):
        return str(value)
    return quoted(value) if isinstance(value, str) else f"of type {type(value).__name__}"
