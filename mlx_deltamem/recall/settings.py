"""The settings of an episode."""

from dataclasses import dataclass, field

from .split import Split

Range = tuple[int, int]


@dataclass(frozen=True)
class EpisodeSettings:
    """The settings of an episode. A number is drawn evenly from a range (low, high), both ends included.

    Attributes:
        facts: The number of facts, each told in a separate turn.
        filler: The number of turns that tell no fact, anywhere in the history.
        gap: The number of such turns after all others. Each question is at least this far from its fact.
        updates: The number of turns that give a fact a new value. A fact may be updated more than once.
        deletions: The number of facts that are deleted.
        absent: The number of questions about facts that were never told.
        questions: The most questions about facts that were told; None: one question for each fact.
        topic_switches: The number of changes of topic among filler turns; None: each turn has a random topic.
        keys: The names of keys, families or lists of values to use; empty: all.
        words: The words that invented values are made of.
        invented: The share of invented values; the others come from lists. Numbers and dates are never invented, and an
            invented value that overlaps another value of the episode is replaced by one from the list.
        doubled: Whether each value is two values of its list together ("Ada Lin"), so that it has several tokens.
            Numbers and dates are never doubled, and a doubled value that overlaps another value of the episode is
            replaced by a single one.
        split: The sides of the values, keys and phrasings to use.

    Raises:
        ValueError: No episode can have these settings.
    """

    facts: Range = (1, 1)
    filler: Range = (0, 0)
    gap: Range = (0, 0)
    updates: Range = (0, 0)
    deletions: Range = (0, 0)
    absent: Range = (0, 0)
    questions: int | None = None
    topic_switches: Range | None = None
    keys: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    invented: float = 0.0
    doubled: bool = False
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        for name in ("facts", "filler", "gap", "updates", "deletions", "absent", "topic_switches"):
            if getattr(self, name) is not None:
                self._check_range(name)
        if self.questions is not None and self.questions < 0:
            raise ValueError(f"questions is {self.questions}; expected 0 or more")
        if not 0 <= self.invented <= 1:
            raise ValueError(f"invented is {self.invented}; expected a share from 0 to 1")
        if self.invented and not self.words:
            raise ValueError(f"invented is {self.invented}, and there are no words to invent values from; give words")
        self._check_fit()

    def _check_range(self, name: str) -> None:
        low, high = getattr(self, name)
        if not 0 <= low <= high:
            raise ValueError(f"{name} is {low} to {high}; expected two numbers from 0 on, the smaller one first")

    def _check_fit(self) -> None:
        if self.facts[0] < 1 and (self.updates[1] or self.deletions[1]):
            raise ValueError("an episode may have no facts to update or delete; use at least 1 fact")
        if self.deletions[1] > self.facts[0]:
            raise ValueError(f"there may be {self.deletions[1]} deletions of {self.facts[0]} facts; use more facts")
        if self.updates[1] and self.deletions[1] >= self.facts[0]:
            raise ValueError("all facts may be deleted, so that none is left to update; use more facts than deletions")
        if self.topic_switches and self.topic_switches[1] and self.topic_switches[1] >= self.filler[0] + self.gap[0]:
            raise ValueError(
                f"there may be {self.topic_switches[1]} topic switches in {self.filler[0] + self.gap[0]} filler turns; "
                "use more filler"
            )
        asked = self.facts[0] if self.questions is None else min(self.facts[0], self.questions)
        if not asked + self.absent[0]:
            raise ValueError("an episode may have no question; use at least 1 question about a fact or an absent fact")
