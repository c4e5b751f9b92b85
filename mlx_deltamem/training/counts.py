"""Counts of the records of a data set that are used, and of those that are refused."""

from collections import Counter
from dataclasses import dataclass, field

from mlx_deltamem.training.records import RecordError

_FORMS = ("unreadable", "role-broken", "empty", "over-long", "refused by the chat template")
_NOTES = (
    "with the history cut to its end",
    "with the text cut to its end",
    "without a history",
    "with a value that was not found",
)


@dataclass
class Counts:
    """Counts of a data set's records. Each answer becomes a question of an episode, or is refused.

    Attributes:
        found: Episodes, their questions, questions of some kinds, and refused records by the kind of fault.
        errors: What was refused and why, each with its place.
    """

    found: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def refuse(self, error: RecordError) -> None:
        self.found[error.kind] += 1
        self.errors.append(str(error))

    def note(self, *cases: bool) -> None:
        """Count what befalls a question that is used, in the order of `_NOTES`."""
        self.found.update(name for name, holds in zip(_NOTES, cases, strict=True) if holds)

    def rows(self) -> list[tuple[str, int]]:
        """The counts to show to the user, the most important first."""
        order = ("episodes", "questions", *_FORMS, *_NOTES)
        return [(name, self.found[name]) for name in order if self.found[name]]
