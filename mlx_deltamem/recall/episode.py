"""An episode: a history, and questions about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict

Kind = Literal["told", "updated", "deleted", "absent"]


class Message(TypedDict):
    """A message of a chat."""

    role: str
    content: str


class Record(TypedDict, total=False):
    """A line of training data: history, question and answer, and the span of the answer that matters, if any."""

    messages: list[Message]
    value: str


@dataclass(frozen=True)
class Question:
    """A question about a history, asked when the history has ended.

    Attributes:
        text: What the user asks.
        answer: What the assistant should say. It ends in the value and a full stop.
        value: What was told last; None where nothing can be recalled (`deleted` and `absent`).
        kind: Whether it was told once, updated since, deleted since, or never told.
        key: What it asks for, for example "dog_name".
        turn: The turn (a user message and its reply, counted from 0) that last told, updated or deleted it; None if
            absent.
        distance: Turns from there to the question; 1 if nothing is in between; None if absent.
        topic_switches: Changes of topic from one filler turn to the next since then; None if absent.
    """

    text: str
    answer: str
    value: str | None
    kind: Kind
    key: str
    turn: int | None
    distance: int | None
    topic_switches: int | None


@dataclass(frozen=True)
class Episode:
    """A history and what is asked about it.

    Attributes:
        history: Messages, of the user and the assistant in turn.
        topics: The topic of each turn; None where something is told.
        questions: Each is asked on its own, as if the others had not been.
    """

    history: tuple[Message, ...]
    topics: tuple[str | None, ...]
    questions: tuple[Question, ...]

    def records(self) -> Iterator[Record]:
        """Yield a record of training data for each question."""
        for question in self.questions:
            record: Record = {
                "messages": [
                    *self.history,
                    {"role": "user", "content": question.text},
                    {"role": "assistant", "content": question.answer},
                ]
            }
            if question.value is not None:
                record["value"] = question.value
            yield record
