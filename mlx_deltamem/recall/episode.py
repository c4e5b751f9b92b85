"""Episodes: a history, and questions about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from mlx_deltamem.sessions.text.messages import Message

Kind = Literal["told", "updated", "deleted", "absent"]


class Record(TypedDict):
    """A line of training data: a chat of history, question and answer, and the part of the answer that matters."""

    messages: list[Message]
    value: NotRequired[str]


@dataclass(frozen=True)
class Question:
    """A question about a history, asked at its end.

    Attributes:
        text: The question of the user.
        answer: The expected answer of the assistant. It ends with the value and a full stop.
        value: The value that was told last; None if there is nothing to recall (`deleted` and `absent`).
        kind: Whether the fact was told once, updated later, deleted later, or never told.
        key: The key of the fact, for example "dog_name".
        turn: The turn (a user message and its reply, counted from 0) that last told, updated or deleted the fact; None
            if absent.
        distance: The number of turns from that turn to the question, at least 1; None if absent.
        topic_switches: The number of changes of topic between filler turns since that turn; None if absent.
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
    """A history and questions about it.

    Attributes:
        history: The messages of the user and the assistant in turn.
        topics: The topic of each turn; None for a turn about a fact.
        questions: The questions. Each is asked at the end of the history, without the others.
    """

    history: tuple[Message, ...]
    topics: tuple[str | None, ...]
    questions: tuple[Question, ...]

    def records(self) -> Iterator[Record]:
        """Yield a training record for each question."""
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
