"""The output of /v1/responses: items that grow with the parts of a reply, and the events that tell of it."""

import uuid
from collections.abc import Iterator
from typing import Any

from mlx_deltamem.serving.api.reply_text import Part
from mlx_deltamem.serving.api.stream import event
from mlx_deltamem.sessions.text.messages import ToolCall

_MESSAGE, _REASONING = "message", "reasoning"


class ResponseOutput:
    """The items of a response. The methods yield events; an answer that is not a stream drops them.

    Attributes:
        items: The items so far, in OpenAI's form. The last one may be incomplete.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._number = -1
        # The type of the item that grows, and its text.
        self._open = ""
        self._texts: list[str] = []

    @property
    def reasoning(self) -> str:
        """The text that the model wrote for itself, in the items that have ended."""
        return "".join(part["text"] for item in self.items if item["type"] == _REASONING for part in item["content"])

    def event(self, kind: str, **fields: object) -> bytes:
        """An event with the next number."""
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def add(self, part: Part) -> Iterator[bytes]:
        """Add a part of the reply."""
        if part.call:
            yield from self.close()
            yield from self._add_call(part.call)
            return
        kind, delta = (_MESSAGE, part.text) if part.text else (_REASONING, part.reasoning)
        yield from self._open_item(kind)
        self._texts.append(delta)
        if kind == _MESSAGE:
            yield self.event("response.output_text.delta", **self._place(), content_index=0, delta=delta, logprobs=[])
        else:
            yield self.event("response.reasoning_text.delta", **self._place(), content_index=0, delta=delta)

    def finish(self, cut: bool) -> Iterator[bytes]:
        """End the last item. A reply without text has an empty message."""
        if not self.items:
            yield from self._open_item(_MESSAGE)
        yield from self.close("incomplete" if cut else "completed")

    def close(self, status: str = "completed") -> Iterator[bytes]:
        """End the item that grows, if there is one."""
        if not self._open:
            return
        item, text, place = self.items[-1], "".join(self._texts), self._place()
        item["status"] = status
        part = _text_part(text) if self._open == _MESSAGE else {"type": "reasoning_text", "text": text}
        item["content"] = [part]
        if self._open == _MESSAGE:
            yield self.event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
        else:
            yield self.event("response.reasoning_text.done", **place, content_index=0, text=text)
        yield self.event("response.content_part.done", **place, content_index=0, part=part)
        yield self._done()
        self._open = ""

    def _open_item(self, kind: str) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self.close()
        self._open, self._texts = kind, []
        if kind == _MESSAGE:
            part: dict[str, Any] = _text_part("")
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": kind, "role": "assistant", "content": []}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": f"rs_{uuid.uuid4().hex}", "type": kind, "summary": [], "content": []}
        yield self._added({**item, "status": "in_progress"})
        yield self.event("response.content_part.added", **self._place(), content_index=0, part=part)

    def _add_call(self, call: ToolCall) -> Iterator[bytes]:
        arguments = call["function"]["arguments"]
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": call.get("id", ""),
            "name": call["function"]["name"],
            "arguments": "",
            "status": "in_progress",
        }
        yield self._added(item)
        yield self.event("response.function_call_arguments.delta", **self._place(), delta=arguments)
        yield self.event(
            "response.function_call_arguments.done", **self._place(), name=item["name"], arguments=arguments
        )
        self.items[-1].update(arguments=arguments, status="completed")
        yield self._done()

    def _added(self, item: dict[str, Any]) -> bytes:
        self.items.append(item)
        return self.event("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _done(self) -> bytes:
        return self.event("response.output_item.done", output_index=len(self.items) - 1, item=self.items[-1])

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
