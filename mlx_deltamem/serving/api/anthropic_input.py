"""A request of Anthropic's Messages API as messages and tools in OpenAI's form."""

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.api.body import Fields
from mlx_deltamem.serving.api.errors import BadFieldError, json_bytes
from mlx_deltamem.serving.api.tools import Tool, function_tool, listed
from mlx_deltamem.sessions.text.messages import Message, parse_messages

_ROLES = ("user", "assistant")
_TOOL_CHOICES = ("auto", "any", "tool", "none")
_THOUGHTS = ("thinking", "redacted_thinking")


def anthropic_messages(fields: Fields) -> tuple[Message, ...]:
    """The messages of a request, with its system prompt as the first one.

    Raises:
        BadFieldError: There are none, or one has another form.
    """
    given = fields.items("messages")
    if not given:
        raise fields.bad("messages", "a list of messages")
    rows: list[dict[str, Json]] = []
    places: list[str] = []
    if fields.has("system"):
        rows.append({"role": "system", "content": _texts(fields, "system")})
        places.append("system")
    for index, message in enumerate(given):
        _add(rows, message, f"messages[{index}]")
        places += [f"messages[{index}]"] * (len(rows) - len(places))
    try:
        return parse_messages(rows, places)
    except ValueError as error:
        raise BadFieldError("messages", str(error)) from None


def anthropic_tools(fields: Fields) -> tuple[Tool, ...] | None:
    """The tools of a request. None if there are none, or none may be called."""
    tools = []
    for index, tool in enumerate(listed(fields)):
        place = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
            raise BadFieldError(
                place, f"{place} is not {{name, description, input_schema}}; the server has no tools itself"
            )
        tools.append(function_tool(Fields(tool, place), "input_schema"))
    choice = fields.nested("tool_choice")
    kind = choice.text("type", "auto") if choice else "auto"
    if kind not in _TOOL_CHOICES:
        raise BadFieldError(
            "tool_choice.type", f"tool_choice.type is {kind[:80]!r}; expected {', '.join(_TOOL_CHOICES)}"
        )
    return tuple(tools) if tools and kind != "none" else None


def _texts(fields: Fields, name: str) -> str:
    """A text, or the texts of a list of text blocks."""
    given = fields.json(name, "")
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise fields.bad(name, "a text, or a list of blocks")
    return "".join(_text(_block(block, f"{fields.name(name)}[{index}]")) for index, block in enumerate(given))


def _block(given: Json, place: str) -> Fields:
    if not isinstance(given, dict):
        raise BadFieldError(place, f"{place} is not an object; expected a block with a type")
    return Fields(given, place)


def _text(block: Fields) -> str:
    if block.text("type", None) != "text":
        raise BadFieldError(
            block.name("type"), f"{block.name('type')} is not text; models see text only: leave other blocks out"
        )
    text = block.text("text", None)
    if text is None:
        raise block.bad("text", "a text")
    return text


def _add(rows: list[dict[str, Json]], given: Json, place: str) -> None:
    """Add the messages of one message: tool results are messages of their own in OpenAI's form."""
    message = _block(given, place)
    role = message.text("role", None)
    if role not in _ROLES:
        raise BadFieldError(message.name("role"), f"{message.name('role')} is not user or assistant")
    content = message.json("content")
    if isinstance(content, str):
        rows.append({"role": role, "content": content})
        return
    texts: list[str] = []
    calls: list[Json] = []
    blocks = message.items("content")
    if blocks is None:
        raise message.bad("content", "a text, or a list of blocks")
    for index, each in enumerate(blocks):
        block = _block(each, f"{place}.content[{index}]")
        kind = block.text("type", "")
        if kind == "tool_use" and role == "assistant":
            calls.append(_call(block))
        elif kind == "tool_result" and role == "user":
            rows.append(
                {"role": "tool", "content": _texts(block, "content"), "tool_call_id": block.text("tool_use_id", None)}
            )
        # Thoughts are not read again.
        elif kind not in _THOUGHTS:
            texts.append(_text(block))
    if role == "assistant":
        rows.append({"role": role, "content": "".join(texts), "tool_calls": calls})
    elif texts or not blocks:
        rows.append({"role": role, "content": "".join(texts)})


def _call(block: Fields) -> Json:
    arguments = block.nested("input")
    text = json_bytes(arguments.values if arguments else {}).decode()
    function: Json = {"name": block.text("name", None), "arguments": text}
    return {"id": block.text("id", None), "type": "function", "function": function}
