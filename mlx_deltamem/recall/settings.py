"""How hard an episode is."""

from dataclasses import dataclass, field

from .split import Split

Range = tuple[int, int]


@dataclass(frozen=True)
class EpisodeSettings:
    """What an episode is made of. A range (low, high) is drawn from evenly, both ends included.

    Attributes:
        facts: Facts told, each in a turn of its own.
        filler: Turns that tell nothing, anywhere in the history.
        gap: Such turns after all others: the question is at least so far from what it asks for.
        updates: Turns that give a fact a new value. A fact may be updated more than once.
        deletions: Facts taken back.
        absent: Questions about what was never told.
        questions: At most so many questions about what was told; None asks for every fact.
        topic_switches: How often the topic of the filler changes; None draws every topic at random.
        keys: Which keys, by the name of a key, a family or a list of values; none means all.
        words: What invented values are made of.
        invented: About this share of the values is invented rather than taken from their list. Numbers and dates never
            are, nor where what was invented overlaps another value of the episode.
        split: What values, keys and phrasings are drawn from.

    Raises:
        ValueError: The settings cannot be met.
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
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        for name in ("facts", "filler", "gap", "updates", "deletions", "absent", "topic_switches"):
            if getattr(self, name) is not None:
                self._check_range(name)
        if self.questions is not None and self.questions < 0:
            raise ValueError(f"questions is {self.questions}; it must not be negative")
        if not 0 <= self.invented <= 1:
            raise ValueError(f"invented is {self.invented}; it is a share, from 0 to 1")
        if self.invented and not self.words:
            raise ValueError(f"a share of {self.invented} of the values is to be invented; give words to make them of")
        self._check_fit()

    def _check_range(self, name: str) -> None:
        low, high = getattr(self, name)
        if not 0 <= low <= high:
            raise ValueError(f"{name} is {low} to {high}; give a range that starts at 0 or more and does not fall")

    def _check_fit(self) -> None:
        if self.facts[0] < 1 and (self.updates[1] or self.deletions[1]):
            raise ValueError("an episode may be without facts to update or delete; tell at least 1 fact")
        if self.deletions[1] > self.facts[0]:
            raise ValueError(f"{self.deletions[1]} deletions are wanted of {self.facts[0]} facts; tell more facts")
        if self.updates[1] and self.deletions[1] >= self.facts[0]:
            raise ValueError("every fact may be deleted, and updates are wanted; tell more facts than are deleted")
        if self.topic_switches and self.topic_switches[1] and self.topic_switches[1] >= self.filler[0] + self.gap[0]:
            raise ValueError(
                f"{self.topic_switches[1]} topic switches are wanted in {self.filler[0] + self.gap[0]} turns of filler;"
                " use more filler"
            )
        asked = self.facts[0] if self.questions is None else min(self.facts[0], self.questions)
        if not asked + self.absent[0]:
            raise ValueError("an episode may be without any question; want at least 1 about a fact or what is absent")
