"""Conversations: turns, and questions that are asked at the end."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mlx_deltamem.sessions.text.messages import Message

Kind = Literal["fact", "two_facts", "assistant", "update", "deletion", "absent", "aggregated", "reverse"]
Style = Literal["plain", "small_talk", "buried", "with_request", "two_facts", "assistant", "short"]
TurnKind = Literal["told", "assistant", "update", "deletion", "ordinary"]

# The attributes of a turn that are lists in JSON.
LISTS = ("relations", "wordings", "repeated", "values")


@dataclass(frozen=True)
class Written:
    """A message, with the names of its wordings and its style."""

    text: str
    wordings: tuple[str, ...]
    style: Style


@dataclass(frozen=True)
class Turn:
    """A message of the user and the reply to it.

    Attributes:
        user: The message of the user.
        assistant: The reply; None stands for the reply of a model.
        kind: What the turn does.
        relations: The names of the relations that the turn tells, updates or deletes.
        wordings: The names of the wordings that it uses for that.
        repeated: The facts that the turn tells, as the assistant would repeat them.
        values: The value of each of these facts, as it is written there.
    """

    user: str
    assistant: str | None
    kind: TurnKind
    relations: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @property
    def tells(self) -> bool:
        """Whether the user tells something in it, for the first time or anew."""
        return self.kind in ("told", "update")


@dataclass(frozen=True)
class Question:
    """A question about a conversation, asked at its end, without the other questions.

    Attributes:
        text, answer: The question of the user, and the expected answer of the assistant.
        value: The part of the answer that must be recalled, as it is written there; None if there is nothing to recall
            (`deletion` and `absent`).
        kind: How the fact was told, or what happened to it later. `two_facts`: with another fact in one message;
            `assistant`: by the assistant; `aggregated`: asks for all facts of a relation; `reverse`: asks for the
            subject of a value.
        relation, theme: The relation of the fact, and the theme of the relation.
        subject: The person or thing that the fact is about; "" if the relation has no subjects.
        value_kind: The kind of the value: a name in `kinds/`, or of a relation with its own patterns.
        told_in: The name of the wording that told the fact last; "" if it was not told.
        asked_in: The name of the wording of the question.
        style: How the fact was told first; None if it was not told.
        sibling: Whether a fact of the same relation with another subject was told, or, for an absent fact, one of the
            same theme.
        turn: The turn, counted from 0, that last told, updated or deleted the fact; None if absent.
        distance: The number of turns from that turn to the question, at least 1; None if absent.
        pieces: The number of tokens of the value, if a tokenizer was given; 0 if there is no value.
    """

    text: str
    answer: str
    value: str | None
    kind: Kind
    relation: str
    theme: str
    subject: str
    value_kind: str
    told_in: str
    asked_in: str
    style: Style | None
    sibling: bool
    turn: int | None
    distance: int | None
    pieces: int | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and questions about them."""

    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]

    def history(self) -> list[Message]:
        """Return the messages of the turns.

        Raises:
            ValueError: A reply is missing.
        """
        messages: list[Message] = []
        for number, turn in enumerate(self.turns):
            if turn.assistant is None:
                raise ValueError(f"turn {number} has no reply; add the replies of a model to the conversation first")
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
        return messages

    def with_replies(self, replies: Iterable[str | None]) -> "Conversation":
        """Return the conversation with other replies, one for each turn."""
        pairs = zip(self.turns, replies, strict=True)
        return replace(self, turns=tuple(replace(turn, assistant=reply) for turn, reply in pairs))

    def records(self) -> Iterator[dict[str, object]]:
        """Yield a training record for each question, in the form that `mlx_deltamem.train` reads.

        Raises:
            ValueError: A reply is missing.
        """
        history = self.history()
        for question in self.questions:
            asked = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
            record: dict[str, object] = {"messages": [*history, *asked]}
            yield record if question.value is None else {**record, "value": question.value}

    def as_json(self) -> dict[str, object]:
        """Return the conversation as a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Conversation":
        """Make a conversation from the result of `as_json`."""
        turns = (Turn(**{**turn, **{name: tuple(turn.get(name, ())) for name in LISTS}}) for turn in found["turns"])
        return cls(tuple(turns), tuple(Question(**question) for question in found["questions"]))
