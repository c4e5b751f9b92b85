"""The parts of a reply: its text, the model's reasoning, and tool calls. mlx-lm knows the markers between them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.sessions.replies.tool_calls import find_tool_calls
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.template.options import DEFAULTS
from mlx_deltamem.sessions.text.messages import ToolCall

_NORMAL, _REASONING, _TOOL = "normal", "reasoning", "tool"


@dataclass(frozen=True)
class Part:
    """A part of a reply. One of the fields has a value.

    Attributes:
        text: A text for the user.
        reasoning: A text that the model wrote for itself.
        call: A tool call, with its arguments as JSON text.
    """

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


class ReplyText:
    """Divides the text of a reply into parts while it arrives.

    Args:
        tokenizer: mlx-lm's tokenizer.
        tools: The tools that the model was offered; None: calls stay text.
        options: The variables of the chat template that the request gave.
        plain: Whether the reply continues a plain text. It then has text only, with all markers.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        tools: Sequence[Mapping[str, Json]] | None = None,
        options: Mapping[str, object] | None = None,
        plain: bool = False,
    ):
        self._tokenizer = tokenizer
        self._tools = tools
        self._plain = plain
        self._call = ""
        self.called = False
        if not plain:
            offered = {"tools": list(tools)} if tools else {}
            self._place = _initial(tokenizer, {**(options or {}), **offered})
            self._machine = _machine(tokenizer).make_state(self._place)

    def feed(self, text: str) -> list[Part]:
        """Take new text, and return the parts that are known now."""
        if self._plain:
            return [Part(text)] if text else []
        self._machine, segments = TextStateMachine.split(self._machine, text)
        return self._parts(segments)

    def end(self) -> list[Part]:
        """Return the last parts. What could have been the beginning of a marker is text."""
        if self._plain:
            return []
        self._machine, rest, place = TextStateMachine.flush(self._machine)
        parts = self._parts([(place, rest)])
        return parts + self._calls(cut=True) if self._place == _TOOL else parts

    def _parts(self, segments: Sequence[tuple[str | None, str]]) -> list[Part]:
        parts: list[Part] = []
        for place, text in segments:
            if self._place == _TOOL and place != _TOOL:
                parts += self._calls()
            if place == _TOOL:
                self._call += text
            elif text and place == _REASONING:
                parts.append(Part(reasoning=text))
            elif text and place == _NORMAL:
                parts.append(Part(text))
            self._place = place or ""
        return parts

    def _calls(self, cut: bool = False) -> list[Part]:
        """The calls in the text between two markers. If there are none, it is text of the model, with its markers."""
        start, end = self._tokenizer.tool_call_start or "", self._tokenizer.tool_call_end or ""
        text, self._call = start + self._call + ("" if cut else end), ""
        if not self._tools:
            return [Part(text)]
        outside, calls = find_tool_calls(self._tokenizer, text, self._tools)
        self.called = self.called or bool(calls)
        parts = [Part(outside)] if outside.strip() else []
        return parts + [Part(call=call) for call in calls]


@lru_cache(maxsize=8)
def _machine(tokenizer: TokenizerWrapper) -> TextStateMachine:
    machine: TextStateMachine = make_text_state_machine(tokenizer)
    return machine


def _initial(tokenizer: TokenizerWrapper, options: Mapping[str, object]) -> str:
    """The state in which a reply begins: templates may write the marker where reasoning starts."""
    if tokenizer.response_initial_state:
        return str(tokenizer.response_initial_state)
    if not tokenizer.has_thinking:
        return _NORMAL
    return _initial_with(tokenizer, json.dumps({**DEFAULTS, **options}, sort_keys=True))


@lru_cache(maxsize=64)
def _initial_with(tokenizer: TokenizerWrapper, options: str) -> str:
    given = json.loads(options)
    try:
        template = ChatTemplate(tokenizer, given.pop("tools", None), **given)
        ids = template.ids([{"role": "user", "content": "x"}], generation_prompt=True)
    except ValueError:
        # The engine refuses the request, with the reason.
        return _NORMAL
    return _REASONING if tokenizer.rfind_think_start(ids) > tokenizer.rfind_think_end(ids) else _NORMAL
