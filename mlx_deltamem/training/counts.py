"""Counts of the records of a data set: those that are used, and those that are left out."""

from collections import Counter
from dataclasses import dataclass, field

from mlx_deltamem.training.records import RecordError

# The kinds of faults of records, and the notes on questions that are used, in the order of the printed counts.
_FAULTS = ("unreadable", "wrong roles", "empty", "too long", "refused by the chat template")
_NOTES = (
    "with the history cut to its end",
    "with the text cut to its end",
    "without a history",
    "with a value that was not found",
)


@dataclass
class Counts:
    """Counts of a data set's records. Each answer becomes a question of an episode, or is left out.

    Attributes:
        found: The numbers of episodes and questions, of questions by note, and of unusable records by fault.
        errors: The error of each unusable record.
    """

    found: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def refuse(self, error: RecordError) -> None:
        """Count an unusable record."""
        self.found[error.kind] += 1
        self.errors.append(str(error))

    def note(self, *holds: bool) -> None:
        """Count a question under those of `_NOTES` that hold, given in this order."""
        self.found.update(name for name, each in zip(_NOTES, holds, strict=True) if each)

    def rows(self) -> list[tuple[str, int]]:
        """Return the counts to print, the most important first."""
        order = ("episodes", "questions", *_FAULTS, *_NOTES)
        return [(name, self.found[name]) for name in order if self.found[name]]
