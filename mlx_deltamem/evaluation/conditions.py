"""The conditions of a comparison: each question is asked with its history in the text, in the memory, in both, in a
chat, or without it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from mlx_deltamem.sessions.history import NONE, History


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
        writes: Whether prompt and reply are written into it; None: as `--write` says.
        chat: The history of the `ChatSession` in which the question is asked; None: it is a prompt of its own.
    """

    name: str
    meaning: str
    text: bool
    memory: Memory
    writes: bool | None = None
    chat: History | None = None


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
        Condition(
            "chat",
            "a ChatSession as a user has it, told turn by turn with the model's own replies, their text dropped",
            False,
            Memory.OWN,
            chat=NONE,
        ),
    )
}
_CHAT_WITH_TEXT = re.compile(r"chat-([1-9][0-9]{0,8})")
DEFAULT_CONDITIONS = ("base", "full", "state", "none", "zeroed", "shuffled")


# Few, so that all memories serve about as often as each other; histories of a kind are often in a row.
_NEAR = 8


def parse_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of these names, in their order.

    Raises:
        ValueError: There is no condition of a name.
    """
    found = {name: condition_named(name) for name in dict.fromkeys(names)}
    if unknown := [name for name, condition in found.items() if condition is None]:
        raise ValueError(f"there is no condition {', '.join(unknown)}; there are {', '.join(CONDITIONS)}, chat-N")
    return tuple(found.values())


def condition_named(name: str) -> Condition | None:
    """The condition of a name, `chat-256` and the like among them; None where there is none."""
    if match := _CHAT_WITH_TEXT.fullmatch(name):
        tokens = int(match[1])
        meaning = f"as `chat`, the last {tokens:,} tokens of earlier turns kept in the text"
        return Condition(name, meaning, False, Memory.OWN, chat=tokens)
    return CONDITIONS.get(name)


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
