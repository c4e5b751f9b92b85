"""The tools that a request offers to the model."""

from collections.abc import Mapping

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.api.body import Fields
from mlx_deltamem.serving.api.errors import BadFieldError

Tool = Mapping[str, Json]
_MOST_TOOLS = 1_000
_CHOICES = ("none", "auto", "required")


def chat_tools(fields: Fields) -> tuple[Tool, ...] | None:
    """The tools of a chat request: objects of type `function`. None if there are none, or none may be called."""
    tools = tuple(nested_tool(tool, index) for index, tool in enumerate(listed(fields)))
    return tools if may_call(fields) and tools else None


def listed(fields: Fields) -> list[Json]:
    """The list of tools, of which there must not be too many."""
    tools = fields.items("tools") or []
    if len(tools) > _MOST_TOOLS:
        raise BadFieldError("tools", f"there are {len(tools):,} tools; expected {_MOST_TOOLS:,} at most")
    return tools


def nested_tool(tool: Json, index: int) -> Tool:
    """Check a tool in the form {"type": "function", "function": {"name", "description", "parameters"}}."""
    place = f"tools[{index}]"
    outer = Fields(tool, place) if isinstance(tool, dict) else None
    function = outer.nested("function") if outer and outer.text("type", "function") == "function" else None
    if function is None:
        raise BadFieldError(place, f'{place} is not {{"type": "function", "function": {{...}}}}; give it in this form')
    return function_tool(function, "parameters")


def function_tool(function: Fields, parameters: str) -> Tool:
    """A tool in OpenAI's form, from the fields of its function.

    Args:
        function: The fields `name` and `description`, and that of the parameters.
        parameters: The name of the field with the JSON schema of the parameters.
    """
    if not function.text("name", ""):
        raise function.bad("name", "a name")
    function.text("description", "")
    schema = function.nested(parameters)
    made: dict[str, Json] = {
        name: value
        for name, value in function.values.items()
        if value is not None and name not in (parameters, "type", "cache_control")
    }
    made["parameters"] = {**schema.values} if schema else {"type": "object"}
    return {"type": "function", "function": made}


def may_call(fields: Fields) -> bool:
    """Whether `tool_choice` allows that a tool is called. A certain call cannot be forced."""
    choice = fields.json("tool_choice", "auto")
    if isinstance(choice, dict):
        return True
    if not isinstance(choice, str) or choice not in _CHOICES:
        raise fields.bad("tool_choice", f"one of {', '.join(_CHOICES)}, or an object")
    return choice != "none"
