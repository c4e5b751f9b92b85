"""A chat refuses tools, arguments and options that are nested deeper than its session file can be read."""

import json

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.sessions.text.json_text import AROUND_ARGUMENTS, AROUND_OPTION, AROUND_TOOL, json_text
from tests.sessions.test_session import loaded

DEEPEST = 100


def nested(levels: int) -> dict:
    """An object with so many levels."""
    return json.loads('{"a":' * levels + "1" + "}" * levels)


def call(arguments: object) -> dict:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


def test_values_and_text():
    assert json_text({"é": [1, None]}) == '{"é": [1, null]}'
    assert json_text("[" * 200) == '"' + "[" * 200 + '"'
    for value, error in ((float("inf"), ValueError), ("\ud800", ValueError), ({1, 2}, TypeError)):
        with pytest.raises(error):
            json_text(value)


@pytest.mark.parametrize("around", [0, 7])
def test_the_depth_is_bounded_with_what_is_around(around):
    assert json_text(nested(DEEPEST - around), around)
    with pytest.raises(ValueError, match=f"nested too deeply, {DEEPEST - around} levels at most"):
        json_text(nested(DEEPEST - around + 1), around)


@pytest.mark.parametrize("as_text", [True, False])
def test_the_deepest_arguments_are_saved_and_read_again(as_text, tmp_path):
    def result(levels: int) -> list[dict]:
        arguments = nested(levels)
        given = json.dumps(arguments) if as_text else arguments
        return [{"role": "user", "content": "Add."}, {"role": "assistant", "tool_calls": [call(given)]}]

    chat = ChatSession(*loaded())
    chat.remember(result(DEEPEST - AROUND_ARGUMENTS))
    chat.read_exchange("Again.", "", tool_calls=result(DEEPEST - AROUND_ARGUMENTS)[1]["tool_calls"])
    chat.save(tmp_path / "chat.safetensors")
    again = ChatSession.load(*loaded(), tmp_path / "chat.safetensors")
    assert again.turns[0].messages == chat.turns[0].messages and again.tool_calls == chat.tool_calls
    for refused in (chat.remember, lambda said: chat.read_exchange("So.", "", tool_calls=said[1]["tool_calls"])):
        with pytest.raises(ValueError, match=r"the arguments of .* nested too deeply, 92 levels at most\); expected"):
            refused(result(DEEPEST - AROUND_ARGUMENTS + 1))
    assert len(chat.turns) == 2


def test_the_deepest_tools_and_options_are_saved_and_read_again(tmp_path):
    tool, option = nested(DEEPEST - AROUND_TOOL), nested(DEEPEST - AROUND_OPTION)
    chat = ChatSession(*loaded(), tools=[tool], size=option)
    chat.save(tmp_path / "chat.safetensors")
    again = ChatSession.load(*loaded(), tmp_path / "chat.safetensors")
    assert again.state.template.options == {"enable_thinking": False, "size": option, "tools": [tool]}
    with pytest.raises(ValueError, match=r"the tools are not .* nested too deeply, 97 levels at most"):
        ChatSession(*loaded(), tools=[{"a": tool}])
    with pytest.raises(ValueError, match=r"the template option 'size' is not JSON .* 98 levels at most"):
        ChatSession(*loaded(), size={"a": option}).save(tmp_path / "other.safetensors")
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["chat.safetensors"]
