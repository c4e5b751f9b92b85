"""Messages in OpenAI's form: accepted, refused, and random JSON values."""

import copy
import json
from enum import StrEnum
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.sessions.text.messages import Message, parse_messages
from tests.tool_messages import call


class Role(StrEnum):
    USER = "user"


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def part(text: object, kind: str = "text") -> dict:
    return {"type": kind, "text": text}


def calling(*calls: object, content: object = None) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


@pytest.mark.parametrize(
    ("messages", "parsed"),
    [
        ("Hi", [user("Hi")]),
        (user("Hi"), [user("Hi")]),
        ((MappingProxyType(user("Hi")),), [user("Hi")]),
        ([user(" a\n"), {"role": "assistant", "content": ""}], [user(" a\n"), {"role": "assistant", "content": ""}]),
        ([user([part("a"), part("b"), part(" c")])], [user("ab c")]),
        ([user([part("a", "input_text"), part("b", "output_text")])], [user("ab")]),
        ([{"role": "system", "content": ""}], [{"role": "system", "content": ""}]),
        ([{"role": "developer", "content": "Be kind."}], [{"role": "system", "content": "Be kind."}]),
        ([user("a\0b")], [user("a\0b")]),
        ([{"role": Role.USER, "content": "a", "name": "Ann"}], [user("a") | {"name": "Ann"}]),
        (
            [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "name": None, "id": 7}],
            [{"role": "assistant", "content": "a"}],
        ),
        ([{"role": "assistant", "content": "a", "tool_calls": []}], [{"role": "assistant", "content": "a"}]),
        (
            [{"role": "tool", "content": "", "tool_call_id": "7", "name": "add"}],
            [{"role": "tool", "content": "", "name": "add", "tool_call_id": "7"}],
        ),
        (
            [calling(call("add", '{"a": 1, "b": [2, null]}') | {"index": 0})],
            [calling(call("add", {"a": 1, "b": [2, None]}), content="")],
        ),
        ([calling(call("now", ""), content="So.")], [calling(call("now", {}), content="So.")]),
        ([calling(call("now", {"é": (1, 2.5)}))], [calling(call("now", {"é": [1, 2.5]}), content="")]),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}],
            [calling({"type": "function", "function": {"name": "now", "arguments": {}}}, content="")],
        ),
    ],
)
def test_messages(messages: object, parsed: list[dict]):
    result = parse_messages(messages)
    assert result == tuple(parsed)
    assert parse_messages(result) == result
    for message in result:
        assert list(message) == [key for key in Message.__annotations__ if key in message]
        assert type(message["role"]) is type(message["content"]) is str


DEEP = json.loads("[" * 500 + "]" * 500)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "the list of messages is empty; expected some"),
        (None, "the messages are None; expected text or a list"),
        (b"Hi", "the messages are of type bytes; expected"),
        (7, "the messages are of type int; expected"),
        ("", "the message is empty; expected some text"),
        ("\ud83d", r"the message is not UTF-8 \('\\ud83d'\); expected text"),
        ({}, "the message has role None; expected one of user, assistant, system, developer, tool: change"),
        ([[user("a")]], r"messages\[0\] is of type list; expected a dict"),
        ([user("a"), "b"], r"messages\[1\] is 'b'; expected a dict"),
        ([{"role": "function", "content": "a"}], "has role 'function'; expected one of"),
        ([{"role": ["user"], "content": "a"}], "has role of type list; expected one of"),
        ([{"role": "User\n" * 99, "content": "a"}], r"has role 'User\\nUser.*\.\.\.'; expected"),
        ([user(" \n")], r"messages\[0\] is empty"),
        ([user([])], r"messages\[0\] is empty"),
        ([user(None)], r"the content of messages\[0\] is None; expected text"),
        ([{"role": "tool"}], r"the content of messages\[0\] is None; expected text"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], r"the content of messages\[0\] is None"),
        ([user({"type": "text", "text": "a"})], r"the content of messages\[0\] is of type dict"),
        ([user([part("a"), {"type": "image_url", "image_url": {}}])], r"part 1 of messages\[0\] has type 'image_url'"),
        ([user([{"text": "a"}])], r"part 0 of messages\[0\] has type None; expected type text"),
        ([user(["a"])], r"part 0 of messages\[0\] is 'a'; expected type text"),
        ([user([part(None)])], r"the text of part 0 of messages\[0\] is None"),
        ([user([part("\udc00")])], r"the text of part 0 of messages\[0\] is not UTF-8"),
        ([user("a") | {"name": 7}], r"the name of messages\[0\] is of type int"),
        ([user("a") | {"tool_call_id": "7"}], "has a tool_call_id and role user; expected role tool"),
        ([user("a") | {"tool_calls": [call("add", "{}")]}], "has tool_calls and role user; expected role assistant"),
        ([{"role": "assistant", "content": "", "tool_calls": {}}], r"the tool_calls of messages\[0\] are of type dict"),
        ([calling("add")], r"tool call 0 of messages\[0\] is not a function call; expected"),
        ([calling({"name": "add", "arguments": {}})], "is not a function call"),
        ([calling(call("add", "{}") | {"type": "custom"})], "is not a function call"),
        ([calling(call("", "{}"))], "has an empty name"),
        ([calling(call(None, "{}"))], r"the name of tool call 0 of messages\[0\] is None"),
        ([calling(call("add", "{}") | {"id": 7})], r"the id of tool call 0 of messages\[0\] is of type int"),
        (
            [calling(call("add", "{"))],
            r"the arguments of tool call 0 .* not a JSON object \(JSONDecodeError: ",
        ),
        ([calling(call("add", "[1]"))], r"are not a JSON object \(of type list\)"),
        ([calling(call("add", None))], r"are not a JSON object \(None\)"),
        ([calling(call("add", '{"a": 1e999}'))], r"are not a JSON object \(ValueError"),
        ([calling(call("add", '{"a": NaN}'))], r"are not a JSON object \(ValueError"),
        ([calling(call("add", '{"a": "\\ud800"}'))], r"are not a JSON object \(UnicodeEncodeError"),
        ([calling(call("add", '{"a": ' + "7" * 5000 + "}"))], r"are not a JSON object \(ValueError"),
        ([calling(call("add", "[" * 10**5))], r"are not a JSON object \(RecursionError"),
        ([calling(call("add", {"a": {1, 2}}))], r"are not a JSON object \(TypeError"),
        ([user(DEEP)], r"part 0 of messages\[0\] is of type list"),
    ],
)
def test_messages_that_are_refused(messages: object, problem: str):
    with pytest.raises(ValueError, match=problem) as error:
        parse_messages(messages)
    text = str(error.value)
    assert len(text.splitlines()) == 1 and len(text) < 300
    assert "; expected " in text and ": " in text.partition("; expected ")[2]


def test_messages_are_neither_changed_nor_shared():
    arguments = {"a": [1]}
    messages = [user([part("a")]), calling(call("add", arguments)), {"role": "tool", "content": "1"}]
    before = copy.deepcopy(messages)
    parsed = parse_messages(messages)
    parsed[1]["tool_calls"][0]["function"]["arguments"]["a"].append(2)
    parsed[2]["content"] = "2"
    assert messages == before


# Any JSON value

texts = st.text(max_size=4) | st.sampled_from(["\ud800", "", "user", "text", "function", "{}", '{"a": 1e999}'])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image_url"]), "text": texts | values})
functions = st.fixed_dictionaries({"name": texts | values}, optional={"arguments": values})
calls = st.fixed_dictionaries({"function": functions | values}, optional={"id": texts | values, "type": texts})
mostly_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | values},
    optional={
        "content": texts | st.lists(parts | values, max_size=2) | values,
        "name": texts | values,
        "tool_calls": st.lists(calls | values, max_size=2) | values,
        "tool_call_id": texts | values,
        "else": values,
    },
)


@given(st.lists(mostly_messages, max_size=3) | mostly_messages | values)
def test_any_json_value(value: object):
    try:
        parsed = parse_messages(value)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert parsed and parse_messages(parsed) == parsed
    assert parse_messages(json.loads(json.dumps(parsed))) == parsed
    json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
