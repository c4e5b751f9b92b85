"""The input and the output of /v1/responses as messages: a text, or a list of items."""

from collections.abc import Mapping, Sequence

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.api.body import Fields
from mlx_deltamem.serving.api.errors import BadFieldError
from mlx_deltamem.sessions.text.messages import Message, parse_messages

_KINDS = "message, function_call, function_call_output or reasoning"


def input_messages(fields: Fields) -> tuple[Message, ...]:
    """The messages of a request, with its instructions as the first one.

    Raises:
        BadFieldError: There is no input, or an item has another form.
    """
    given = fields.json("input")
    if isinstance(given, str):
        items: list[Json] = [{"role": "user", "content": given}]
    elif isinstance(given, list) and given:
        items = given
    else:
        raise fields.bad("input", "a text, or a list of items")
    rows, places = _rows(items)
    instructions = fields.text("instructions", "")
    if instructions:
        rows.insert(0, {"role": "system", "content": instructions})
        places.insert(0, "instructions")
    try:
        return parse_messages(rows, places)
    except ValueError as error:
        raise BadFieldError("input", str(error)) from None


def output_messages(items: Sequence[Mapping[str, Json]]) -> tuple[Message, ...]:
    """The messages of a reply, from the items of a response. A reply that is reasoning alone has none."""
    rows, _ = _rows(items)
    return parse_messages(rows) if rows else ()


def _rows(items: Sequence[Json] | Sequence[Mapping[str, Json]]) -> tuple[list[dict[str, Json]], list[str]]:
    """The messages of items, not yet checked, and the place of each.

    Raises:
        BadFieldError: An item has another form.
    """
    rows: list[dict[str, Json]] = []
    places: list[str] = []
    for index, item in enumerate(items):
        _add(rows, item, f"input[{index}]")
        places += [f"input[{index}]"] * (len(rows) - len(places))
    return rows, places


def _add(rows: list[dict[str, Json]], given: Json | Mapping[str, Json], place: str) -> None:
    """Add the message of an item, or add a call to the message of the assistant that made it."""
    if not isinstance(given, dict):
        raise BadFieldError(place, f"{place} is not an object; expected an item: {_KINDS}")
    item = Fields(given, place)
    kind = item.text("type", "message")
    if kind == "message":
        rows.append({"role": item.text("role", None), "content": item.json("content")})
    elif kind == "function_call":
        if not rows or rows[-1]["role"] != "assistant":
            rows.append({"role": "assistant", "content": None, "tool_calls": []})
        calls = rows[-1].setdefault("tool_calls", [])
        if isinstance(calls, list):
            calls.append(_call(item))
    elif kind == "function_call_output":
        output = item.json("output", "")
        rows.append({"role": "tool", "content": output, "tool_call_id": item.text("call_id", None)})
    # Thoughts are not read again.
    elif kind != "reasoning":
        raise BadFieldError(f"{place}.type", f"{place}.type is {kind[:80]!r}; expected {_KINDS}", "unsupported_value")


def _call(item: Fields) -> Json:
    function: Json = {"name": item.text("name", None), "arguments": item.text("arguments", "")}
    return {"id": item.text("call_id", None), "type": "function", "function": function}
