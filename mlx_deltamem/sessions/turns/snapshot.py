"""The data of a chat at one time: to go back to it, and to see whether the chat has changed since then."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.sessions.turns.restore import States
from mlx_deltamem.sessions.turns.turn import Turn, are_same_runs


@dataclass(frozen=True)
class Snapshot:
    """The data of a chat at one time, without its keys and values. The attributes are those of `ChatState`."""

    turns: list[Turn]
    states: States
    memory_set: bool
    system: str | None
    template: ChatTemplate
    conversation: str
    starts: dict[str, tuple[int, ...]]
    history: History

    def is_same(self, other: "Snapshot") -> bool:
        """Whether both have the same turns and the same memory, and the text is seen in the same way."""
        text = (self.system, self.template, self.conversation, self.starts)
        same_text = text == (other.system, other.template, other.conversation, other.starts)
        return self.has_same_memory(other) and are_same_objects(self.turns, other.turns) and same_text

    def has_same_memory(self, other: "Snapshot") -> bool:
        """Whether both have the same turns, memory and history."""
        same_states = are_same_objects(self.states, other.states)
        return self.history == other.history and same_states and are_same_runs(self.turns, other.turns)


def are_same_objects(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether two lists hold the same objects: turns and states hold arrays, and never change."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
