"""One reply as it grows: its parts so far, its log-probabilities, and its end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from mlx_deltamem.serving.api.replies import Step, incomplete, merged
from mlx_deltamem.serving.api.reply_text import Part, ReplyText
from mlx_deltamem.serving.exchange import Done, Piece
from mlx_deltamem.sessions.text.messages import ToolCall


@dataclass
class Choice:
    """A reply of a request.

    Attributes:
        divider: Divides its text into parts.
        texts, reasoning, calls: Its parts.
        pieces: Its steps that have log-probabilities.
        done: Its end; None before it.
        note: A remark of the engine, or None.
    """

    divider: ReplyText
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    done: Done | None = None
    note: str | None = None

    def take(self, step: Step) -> list[Part]:
        """Add a step of the engine, and return the parts that are known now."""
        self.note = step.note or self.note
        if isinstance(step, Done):
            self.done = step
            parts = self.divider.end()
        else:
            parts = self.divider.feed(step.text)
            if step.logprob is not None:
                self.pieces.append(step)
        for part in parts:
            if part.text:
                self.texts.append(part.text)
            if part.reasoning:
                self.reasoning.append(part.reasoning)
            if part.call:
                self.calls.append(part.call)
        return parts

    @property
    def text(self) -> str:
        """The text for the user."""
        return "".join(self.texts)

    @property
    def end(self) -> Done:
        """Its end.

        Raises:
            RefusedError: The engine gave none.
        """
        if self.done is None:
            raise incomplete()
        return self.done

    @property
    def finish_reason(self) -> str:
        """Why it ended, as OpenAI's API says it."""
        reason = self.end.finish_reason
        return "tool_calls" if self.calls and reason == "stop" else reason


async def collected(replies: Sequence[AsyncIterator[Step]], choices: Sequence[Choice]) -> None:
    """Read replies to their end.

    Raises:
        RefusedError: One of them failed, or has no end. All are closed.
    """
    async with aclosing(merged(replies)) as steps:
        async for index, step in steps:
            choices[index].take(step)
    for choice in choices:
        if choice.done is None:
            raise incomplete()
