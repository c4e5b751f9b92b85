"""How far a chat has gone: a reply that was asked for can only begin while the chat is still there."""

from dataclasses import dataclass

from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.sessions.turns.snapshot import are_same_objects
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn


@dataclass(frozen=True)
class Progression:
    """How far a chat has gone: what the text of the next reply depends on, apart from the memory."""

    state: ChatState
    turns: tuple[Turn, ...]
    system: str | None
    history: History
    conversation: str

    @classmethod
    def of(cls, state: ChatState) -> "Progression":
        """How far a chat has gone now."""
        return cls(state, tuple(state.turns), state.system, state.history, state.conversation)

    def is_same(self, other: "Progression") -> bool:
        """Whether the chat has not gone on between the two."""
        same_text = (self.system, self.history, self.conversation) == (other.system, other.history, other.conversation)
        return self.state is other.state and are_same_objects(self.turns, other.turns) and same_text
