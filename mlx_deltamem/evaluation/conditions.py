"""The conditions of an evaluation: where the history is when a question is asked.

The history is in the text, in the memory, in both, in a chat, or left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mlx_deltamem.sessions.history import NONE, History


class Memory(Enum):
    """The memory at the beginning of a prompt: empty, the question's own, zeros, or another history's."""

    EMPTY = "empty"
    OWN = "own"
    ZEROED = "zeroed"
    OTHER = "other"


@dataclass(frozen=True)
class Condition:
    """A condition: one column of the report.

    Every question starts from a fresh copy of its memory, so no question affects another one.

    Attributes:
        name: The name in `--conditions`.
        meaning: A short explanation for `--help` and the report.
        text: Whether the history is in the prompt.
        memory: The memory before the prompt is read.
        writes: Whether the prompt and the reply are written into the memory. None: `--write` decides.
        chat: The `history` setting of the `ChatSession` in which the question is asked. None: the question is asked
            in a single prompt, not in a chat.
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
            "a chat: the history turn by turn with the model's own replies; earlier turns are in the memory only",
            False,
            Memory.OWN,
            chat=NONE,
        ),
    )
}
_CHAT_WITH_TEXT = re.compile(r"chat-([1-9][0-9]{0,8})")
DEFAULT_CONDITIONS = ("base", "full", "state", "none", "zeroed", "shuffled")


def parse_conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions with these names, in the same order, each once.

    Raises:
        ValueError: A name is not a condition's.
    """
    found = {name: find_condition(name) for name in names}
    if unknown := [name for name, condition in found.items() if condition is None]:
        raise ValueError(f"there is no condition {', '.join(unknown)}; expected {', '.join(CONDITIONS)} or chat-N")
    return tuple(condition for condition in found.values() if condition is not None)


def find_condition(name: str) -> Condition | None:
    """The condition with a name, including `chat-256` and the like; None if there is none."""
    if match := _CHAT_WITH_TEXT.fullmatch(name):
        tokens = int(match[1])
        meaning = f"as `chat`, with the last {tokens:,} tokens of earlier turns kept in the text"
        return Condition(name, meaning, False, Memory.OWN, chat=tokens)
    return CONDITIONS.get(name)
