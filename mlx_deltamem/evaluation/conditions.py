"""What the model is given with a question: its history in the text, in the memory, in both, or nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Memory(Enum):
    """The memory that a prompt is read with."""

    EMPTY = "empty"
    OWN = "own"
    ZEROED = "zeroed"
    OTHER = "other"


@dataclass(frozen=True)
class Condition:
    """One column of the comparison.

    Every question begins from a state of its own, which is given to it anew: nothing is left of the question before.

    Attributes:
        name: As in `--conditions`.
        meaning: In a few words, for `--help` and the report.
        text: Whether the history is in the prompt.
        memory: What is in the memory before the prompt is read.
        writes: Whether prompt and reply are written into it; None: as `--writes` says.
    """

    name: str
    meaning: str
    text: bool
    memory: Memory
    writes: bool | None = None


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("base", "the history in the text, no memory", True, Memory.EMPTY, False),
        Condition(
            "full", "the history in the text, and written into the memory as it is read", True, Memory.EMPTY, True
        ),
        Condition("replay", "the history in the memory, and in the text again, read only", True, Memory.OWN, False),
        Condition("state", "the history in the memory only", False, Memory.OWN),
        Condition("none", "no history", False, Memory.EMPTY),
        Condition("zeroed", "control: as `state`, the memory replaced by zeros", False, Memory.ZEROED),
        Condition("shuffled", "control: as `state`, the memory of another history", False, Memory.OTHER),
    )
}
DEFAULT_CONDITIONS = ("base", "full", "state", "none", "zeroed", "shuffled")


# Few, so that all memories serve about as often as each other; histories of a kind are often in a row.
_NEAR = 8


def parse_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of these names, in their order.

    Raises:
        ValueError: There is no condition of a name.
    """
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ValueError(f"there is no condition {', '.join(unknown)}; there are {', '.join(CONDITIONS)}")
    return tuple(CONDITIONS[name] for name in dict.fromkeys(names))


def others(groups: Sequence[str], seed: int) -> dict[str, str]:
    """For each group one of the few just before it, drawn at random; for the first one, the second.

    Apart from that of the first, it does not depend on what comes later: a run may go on with more questions.

    Raises:
        ValueError: There is no other group.
    """
    if len(groups) < 2:
        raise ValueError(
            "shuffled needs the memory of another history, and all questions are about one; ask more questions, or "
            "leave shuffled out of --conditions"
        )
    generator = np.random.default_rng(seed)
    drawn = {
        group: groups[generator.integers(max(0, place - _NEAR), place)] for place, group in enumerate(groups) if place
    }
    return {groups[0]: groups[1], **drawn}
