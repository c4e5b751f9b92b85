"""The parts of a reply: text, thoughts and calls, however the text is cut."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.serving.api.reply_text import ReplyText
from tests.conftest import backbone
from tests.serving.api.conftest import Tokenizer
from tests.sessions.template.test_chat_template import ASK, written

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = '<call>{"name": "add", "arguments": {"a": "<think>"}}</call>'
THINKING = Tokenizer()
THINKING.has_thinking = True


def _divided(divider, pieces):
    """The text, the thoughts and the arguments of the calls."""
    parts = [part for piece in pieces for part in divider.feed(piece)] + divider.end()
    calls = [json.loads(part.call["function"]["arguments"]) for part in parts if part.call]
    return "".join(part.text for part in parts), "".join(part.reasoning for part in parts), calls


@given(cuts=st.lists(st.integers(0, 120), max_size=12))
def test_cuts_do_not_matter(cuts):
    text = f"A<think>B <ca</think>C{CALL}D{CALL} <cal"
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(borders)]
    expected = ("ACD <cal", "B <ca", [{"a": "<think>"}] * 2)
    assert _divided(ReplyText(THINKING, TOOLS), pieces) == expected


def test_a_call_that_was_cut():
    whole = '<call>{"name": "add", "arguments": {}}'
    assert _divided(ReplyText(THINKING, TOOLS), [whole]) == ("", "", [{}])
    assert _divided(ReplyText(THINKING, TOOLS), [whole[:-3]]) == (whole[:-3], "", [])
    assert _divided(ReplyText(THINKING, TOOLS), ["a<call>"]) == ("a<call>", "", [])


@given(text=st.text("<>/acl", max_size=20))
def test_a_text_without_markers_is_unchanged(text):
    tokenizer = Tokenizer()
    tokenizer.tool_call_start = "<never>"
    assert _divided(ReplyText(tokenizer), text)[0] == text
    assert _divided(ReplyText(THINKING, plain=True), text)[0] == text


@pytest.mark.parametrize("thinks", [False, True])
def test_a_template_can_begin_the_thoughts(thinks):
    plain = load_tokenizer(Path(backbone("qwen3-tiny")))._tokenizer
    plain.add_tokens(["<think>", "</think>"])
    source = "{% for m in messages %}<S>{{ m.role }}\n{{ m.content }}<E>\n{% endfor %}" + ASK
    plain.chat_template = written(source + "{% if enable_thinking %}<think>\n{% endif %}")
    divider = ReplyText(TokenizerWrapper(plain), options={"enable_thinking": thinks})
    assert _divided(divider, ["Well</think>Yes"]) == (("Yes", "Well", []) if thinks else ("Well</think>Yes", "", []))
