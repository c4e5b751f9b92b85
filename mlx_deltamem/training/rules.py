"""The options of episodes: how a chat becomes a history and its questions (facts 3.2)."""

from dataclasses import dataclass

from mlx_deltamem.options.option import check_options, option
from mlx_deltamem.sessions.turns.writing import AFTER, WRITES


@dataclass(frozen=True)
class EpisodeRules:
    """The rules for making episodes of a chat.

    Raises:
        ValueError: A number is out of range.
    """

    recent_messages: int = option(1, "Messages before the answer that stay in the text.", least=1)
    final_assistant_only: bool = option(True, "Train on the last answer of a chat only, not on every answer.")
    max_write_length: int = option(8192, "Longest history in tokens; a longer one is cut to its end.", least=1)
    max_seq_length: int = option(
        512, "Longest text with its answer in tokens; a longer one is cut to its end.", least=2
    )
    write: str = option(AFTER, "The part of a chat that is written into the memory, as `--write` of a chat.", WRITES)
    turn_by_turn: bool = option(
        False, "Write the turns of a history one by one, as a chat does that does not see its earlier turns."
    )
    questions_per_write: int = option(
        4, "Most questions in a row about one history that share the passes over it.", least=1
    )

    def __post_init__(self) -> None:
        check_options(self)
