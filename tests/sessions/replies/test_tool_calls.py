"""Tool calls in replies: mlx-lm's parsers, with markers that are special tokens or plain tokens."""

import json
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tool_parsers import glm47, json_tools, kimi_k2, mistral, pythonic, qwen3_coder
from transformers import AutoTokenizer

from mlx_deltamem.sessions.replies.tool_calls import find_tool_calls
from mlx_deltamem.sessions.text.messages import parse_messages
from tests.conftest import backbone

TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}},
    }
]
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": "é", "b": 2}}\n</tool_call>'
CALLED = ("add", {"a": "é", "b": 2})


@cache
def tokenizer_with(parser: ModuleType | None, special: bool = True) -> TokenizerWrapper:
    """The golden tokenizer with a parser of mlx-lm. The markers are tokens, special or plain."""
    made = AutoTokenizer.from_pretrained(backbone())
    if parser is None:
        return TokenizerWrapper(made)
    start, end = parser.tool_call_start, parser.tool_call_end
    made.add_tokens([marker for marker in (start, end) if marker], special_tokens=special)
    return TokenizerWrapper(made, tool_call_start=start, tool_call_end=end, tool_parser=parser.parse_tool_call)


def read(tokenizer: TokenizerWrapper, text: str) -> tuple[str, list[tuple[str, object]]]:
    """The text of a reply without its calls, and the names and arguments of the calls."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    rest, calls = find_tool_calls(tokenizer, ids, TOOLS)
    again, same = find_tool_calls(tokenizer, text, TOOLS)
    assert again == rest and [each["function"] for each in same] == [each["function"] for each in calls]
    for each in calls:
        assert list(each) == ["id", "type", "function"] and each["type"] == "function"
    return rest, [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in calls]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("parser", "text", "rest", "calls"),
    [
        (json_tools, ADD, "", [CALLED]),
        (json_tools, f"<think>So</think>\n{ADD}\n{ADD} Ok.<|im_end|>", "<think>So</think>\n\n Ok.", [CALLED, CALLED]),
        (json_tools, ADD.removesuffix("</tool_call>"), "", [CALLED]),
        (json_tools, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", {"a": 1})]),
        (
            qwen3_coder,
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n"
            "</tool_call>",
            "",
            [("add", {"a": "1", "b": 2})],
        ),
        (glm47, "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>", "", [("add", {"a": "1"})]),
        (mistral, 'So.[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', "So.", [("add", {"a": 1}), ("now", {})]),
        (pythonic, "<|tool_call_start|>[add(a=1), now()]<|tool_call_end|>", "", [("add", {"a": 1}), ("now", {})]),
    ],
)
def test_calls(parser: ModuleType, special: bool, text: str, rest: str, calls: list[tuple[str, object]]):
    assert read(tokenizer_with(parser, special), text) == (rest, calls)


@pytest.mark.parametrize(
    "text",
    [
        "No call.",
        "",
        "</tool_call>",
        "<tool_call>",
        '<tool_call>{"name": "add", "arguments": {"a": </tool_call> So.',
        "<tool_call>7</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "a"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>[{"name": "add", "arguments": {}}, 7]</tool_call>',
        "<tool_call>" + "[" * 3000,
    ],
)
def test_a_call_that_cannot_be_read_stays_text(text: str):
    assert read(tokenizer_with(json_tools, special=False), text) == (text, [])
    assert read(tokenizer_with(None), text) == (text, [])
    if not text.endswith("["):
        assert read(tokenizer_with(json_tools, special=False), f"{text} So. {ADD}") == (f"{text} So. ", [CALLED])


def test_special_tokens_are_left_out():
    tokenizer = tokenizer_with(json_tools)
    assert read(tokenizer, "<tool_call>{</tool_call> So.<|im_end|>") == ("{ So.", [])
    assert read(tokenizer_with(None), "So.<|im_end|>") == ("So.", [])


@pytest.mark.parametrize("error", [KeyError("a"), SyntaxError("a"), RecursionError(), AttributeError("a")])
def test_a_parser_that_fails(error: Exception):
    def fail(*_: object) -> None:
        raise error

    made = tokenizer_with(json_tools, special=False)
    tokenizer = TokenizerWrapper(made, tool_call_start="<tool_call>", tool_call_end="</tool_call>", tool_parser=fail)
    assert read(tokenizer, ADD) == (ADD, [])


def test_ids_of_calls():
    tokenizer = tokenizer_with(json_tools)
    _, calls = find_tool_calls(tokenizer, tokenizer.encode(ADD * 2), TOOLS)
    ids = [each["id"] for each in calls]
    assert len(set(ids)) == 2 and all(len(id_) == 9 and id_.isalnum() for id_ in ids)
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>"
    )
    _, (its_own,) = find_tool_calls(tokenizer_with(kimi_k2), text)
    assert its_own == {"id": "functions.add:0", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def test_calls_go_back_into_messages():
    tokenizer = tokenizer_with(json_tools)
    rest, calls = find_tool_calls(tokenizer, tokenizer.encode(f"So. {ADD}"), TOOLS)
    (message,) = parse_messages([{"role": "assistant", "content": rest, "tool_calls": calls}])
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": CALLED[1]}


def test_the_parser_that_mlx_lm_chooses(tmp_path: Path):
    shutil.copytree(backbone(), tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    template = "{{ messages[0].content }}{% if 0 %}<tool_call>{{ tool_call.name }}{% endif %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    assert read(load_tokenizer(tmp_path / "model"), f"So. {ADD}") == ("So. ", [CALLED])


@pytest.mark.slow
@given(st.lists(st.sampled_from([ADD, "<tool_call>", "</tool_call>", "[]", "{", " So. ", "é"]), max_size=6))
def test_any_order_of_pieces(pieces: list[str]):
    text = "".join(pieces)
    rest, calls = find_tool_calls(tokenizer_with(json_tools, special=False), text, TOOLS)
    assert len(calls) <= pieces.count(ADD)
    assert len(rest) >= len(text) - len(calls) * (len(ADD) + len(text))
    assert calls or rest == text


def test_a_call_with_arguments_that_no_message_keeps_is_text():
    for levels, count in ((92, 1), (93, 0)):
        arguments = '{"a":' * levels + "1" + "}" * levels
        text = f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>'
        rest, calls = find_tool_calls(tokenizer_with(json_tools), text)
        assert len(calls) == count and bool(rest) == (not count)
        assert parse_messages({"role": "assistant", "content": rest, "tool_calls": calls})
