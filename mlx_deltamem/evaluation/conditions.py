"""The conditions of an evaluation: where the history is when a question is asked.

The history is in the text, in the memory, in both, in a chat, or left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mlx_deltamem.evaluation.baselines.baseline import ALL_TURNS, NAMES, RETRIEVAL, Baseline, find_baseline
from mlx_deltamem.sessions.turns.history import NONE, History


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
        baseline: The choice of the part of the history that is in the prompt, if it is not all of it.
    """

    name: str
    meaning: str
    text: bool
    memory: Memory
    writes: bool | None = None
    chat: History | None = None
    baseline: Baseline | None = None

    @property
    def keeps_memory(self) -> bool:
        """Whether a memory is kept between the history and the question."""
        return self.chat is not None or self.memory is not Memory.EMPTY

    @property
    def grows(self) -> bool:
        """Whether the bytes that are kept, beside the memory, grow with the history."""
        return self.text if self.baseline is None else self.baseline.grows

    @property
    def reads_all(self) -> bool:
        """Whether the tokens that are read for a question grow with the history."""
        baseline = self.baseline
        return self.text and (baseline is None or (baseline.kind in RETRIEVAL and baseline.amount == ALL_TURNS))


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
# What may follow the name of a baseline: the memory beside its text, or a control of it.
_WITH_MEMORY = {"state": Memory.OWN, "zeroed": Memory.ZEROED, "shuffled": Memory.OTHER}
_BESIDE = {
    Memory.OWN: "the history in the memory, and",
    Memory.ZEROED: "control: a memory of zeros, and",
    Memory.OTHER: "control: the memory of another history, and",
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
        raise ValueError(
            f"there is no condition {', '.join(unknown)}; expected {', '.join(CONDITIONS)} or chat-N, or a baseline: "
            f"{NAMES}, alone or with +{', +'.join(_WITH_MEMORY)}"
        )
    return tuple(condition for condition in found.values() if condition is not None)


def find_condition(name: str) -> Condition | None:
    """The condition with a name, including `chat-256`, `bm25-4+state` and the like; None if there is none."""
    if match := _CHAT_WITH_TEXT.fullmatch(name):
        tokens = int(match[1])
        meaning = f"as `chat`, with the last {tokens:,} tokens of earlier turns kept in the text"
        return Condition(name, meaning, False, Memory.OWN, chat=tokens)
    return CONDITIONS.get(name) or _with_baseline(name)


def _with_baseline(name: str) -> Condition | None:
    """The condition of a baseline, alone or with a memory. As in `base` and `replay`, the prompt is only read."""
    text, plus, beside = name.partition("+")
    baseline = find_baseline(text)
    if baseline is None or (plus and beside not in _WITH_MEMORY):
        return None
    memory = _WITH_MEMORY[beside] if plus else Memory.EMPTY
    meaning = f"{_BESIDE[memory]} {baseline.meaning}, read only" if plus else f"{baseline.meaning}, no memory"
    return Condition(name, meaning, True, memory, False, baseline=baseline)
