"""Check that a turn, and the text that is seen before it, fit into the model's window."""

from collections.abc import Sequence

from mlx_deltamem.sessions.reading.prefill import window
from mlx_deltamem.sessions.turns.seen import seen_before
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns


class TooLongError(ValueError):
    """A turn does not fit into the model's window, together with the text that is seen before it.

    Args:
        message: The message of the error.
        window: The model's window, in tokens.
        room: The number of tokens of the window that are left beside the turn; negative if the turn alone is longer.
    """

    def __init__(self, message: str, window: int, room: int):
        super().__init__(message)
        self.window, self.room = window, room


def check_fits(state: ChatState, turn: Turn) -> None:
    """Check that a turn's messages, and the text that is seen before them, fit into the model's window.

    Raises:
        TooLongError: They do not.
    """
    _check_fits(state, "message", len(turn.opening.ids), turn, state.turns)


def check_fits_with_reply(state: ChatState, index: int, turn: Turn) -> None:
    """Check that turn `index` with a reply that was given, and the text that is seen before it, fit into the window.

    Raises:
        TooLongError: They do not.
    """
    _check_fits(state, "message with its reply", turn.length, turn, state.turns[:index])


def _check_fits(state: ChatState, what: str, tokens: int, turn: Turn, earlier: Sequence[Turn]) -> None:
    longest = window(state.model)
    if state.keeps_text:
        seen = sum(each.length for each in said_turns(earlier, turn.conversation))
    else:
        seen = len(seen_before(turn, earlier, state.history, state.starts.get(turn.conversation)).ids)
    if longest is not None and seen + tokens > longest:
        raise TooLongError(
            f"the {what} is {tokens} tokens on top of {seen} in view; the model's window is {longest}: "
            "shorten it, or use a history of fewer tokens",
            longest,
            longest - tokens,
        )
