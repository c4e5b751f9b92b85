"""The content of a message in Anthropic's form: blocks that grow with the parts of a reply, and their events."""

import json
from collections.abc import Iterator
from typing import Any

from mlx_deltamem.serving.api.reply_text import Part
from mlx_deltamem.serving.api.stream import event
from mlx_deltamem.sessions.text.messages import ToolCall

_TEXT, _THINKING = "text", "thinking"


class Blocks:
    """The blocks of a reply. The methods yield events; an answer that is not a stream drops them.

    Attributes:
        blocks: The blocks so far. The last one may be incomplete.
    """

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._open = ""
        self._texts: list[str] = []

    def add(self, part: Part) -> Iterator[bytes]:
        """Add a part of the reply."""
        if part.call:
            yield from self.close()
            yield from self._add_call(part.call)
            return
        kind, text = (_TEXT, part.text) if part.text else (_THINKING, part.reasoning)
        if self._open != kind:
            yield from self.close()
            # A thought of another server would be signed here.
            yield self._start({"type": kind, kind: "", **({"signature": ""} if kind == _THINKING else {})})
            self._open, self._texts = kind, []
        self._texts.append(text)
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def close(self) -> Iterator[bytes]:
        """End the block that grows, if there is one."""
        if self._open:
            self.blocks[-1][self._open] = "".join(self._texts)
            self._open = ""
            yield self._stop()

    def _add_call(self, call: ToolCall) -> Iterator[bytes]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        yield self._start({"type": "tool_use", "id": call.get("id", ""), "name": call["function"]["name"], "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": text})
        self.blocks[-1]["input"] = json.loads(text)
        yield self._stop()

    def _start(self, block: dict[str, Any]) -> bytes:
        self.blocks.append(block)
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        return _event("content_block_stop", index=self._index)

    @property
    def _index(self) -> int:
        return len(self.blocks) - 1


def _event(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind)
