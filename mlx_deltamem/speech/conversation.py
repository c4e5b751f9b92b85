"""A conversation: turns, and questions that are asked when it has ended."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlx_deltamem.recall import Message

Kind = Literal["fact", "two_facts", "assistant", "update", "deletion", "absent", "aggregated", "reverse"]
Style = Literal["plain", "small_talk", "buried", "with_request", "two_facts", "assistant"]
TurnKind = Literal["told", "assistant", "update", "deletion", "ordinary"]


@dataclass(frozen=True)
class Turn:
    """A message of the user and the reply to it.

    Attributes:
        user: What the user says.
        assistant: The reply; None stands for what a model would reply.
        kind: What happens in it.
        relations: What it tells, updates or takes back, by the name of the relation.
        wordings: The names of the wordings that do.
    """

    user: str
    assistant: str | None
    kind: TurnKind
    relations: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question about a conversation, asked when it has ended, as if the others had not been.

    Attributes:
        text, answer: What the user asks, and what the assistant should say.
        value: The part of the answer that has to be recalled, as it is written there; None where there is nothing
            (`deletion` and `absent`).
        kind: How it was told, or what became of it since. `two_facts`: with another in one message; `assistant`: by the
            assistant; `aggregated`: all that was told of a relation; `reverse`: from the value to whose it is.
        relation, theme: What it asks for, and the theme of that.
        subject: Whose or what's it is; "" where the relation has no subjects.
        value_kind: The kind of its value: a name of `kinds.yaml`, or of a relation that has its own.
        told_in: The name of the wording that told it last; "" where it was not told.
        asked_in: The name of the wording of the question.
        style: How it was told; None where it was not.
        sibling: Whether the same was told of another subject, or a neighbour of its theme.
        turn: The turn, counted from 0, that last told, updated or took it back; None if absent.
        distance: Turns from there to the question; 1 if nothing is in between; None if absent.
        pieces: Tokens of the value, where a tokenizer was given; 0 where there is no value.
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

    def filled(self, reply: Callable[[list[Message]], str]) -> "Conversation":
        """The conversation with every reply: `reply` is given the messages so far, the last of them the user's."""
        turns: list[Turn] = []
        for turn in self.turns:
            given = turn.assistant
            if given is None:
                given = reply([*_messages(turns), {"role": "user", "content": turn.user}])
            turns.append(replace(turn, assistant=given))
        return replace(self, turns=tuple(turns))

    def history(self) -> list[Message]:
        """The messages of the turns.

        Raises:
            ValueError: A reply is missing.
        """
        if missing := [str(at) for at, turn in enumerate(self.turns) if turn.assistant is None]:
            raise ValueError(f"turns without a reply: {', '.join(missing)}; fill them with a model's replies first")
        return _messages(self.turns)

    def records(self) -> Iterator[dict[str, object]]:
        """A record of training data for each question, as `mlx_deltamem.train` reads them.

        Raises:
            ValueError: A reply is missing.
        """
        history = self.history()
        for question in self.questions:
            asked = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
            record: dict[str, object] = {"messages": [*history, *asked]}
            yield record if question.value is None else {**record, "value": question.value}

    def as_json(self) -> dict[str, object]:
        """All of it, as JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, list[dict]]) -> "Conversation":
        """The conversation that `as_json` gave."""
        turns = (
            Turn(**{**turn, "relations": tuple(turn["relations"]), "wordings": tuple(turn["wordings"])})
            for turn in found["turns"]
        )
        return cls(tuple(turns), tuple(Question(**question) for question in found["questions"]))


def _messages(turns: Iterable[Turn]) -> list[Message]:
    pairs = ((("user", turn.user), ("assistant", turn.assistant)) for turn in turns)
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]
