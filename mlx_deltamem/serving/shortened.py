"""Let a chat see less of its earlier text where a turn does not fit into the model's window beside all of it."""

from collections.abc import Callable
from typing import TypeVar

from mlx_deltamem.sessions.reading.fitting import TooLongError
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.history import NONE, History
from mlx_deltamem.sessions.turns.seen import seen_text
from mlx_deltamem.sessions.turns.turn import Turn

_Result = TypeVar("_Result")


def within_window(chat: ChatSession, history: History, work: Callable[[], _Result]) -> _Result:
    """Do work on a chat. Where a turn does not fit into the model's window, the text in view is halved until it fits.

    The chat then has a history of fewer tokens, with which the turn has to run. `shortened_note` tells of it.

    Args:
        chat: The chat.
        history: The history of the memory.
        work: The work. If it fails, the chat is unchanged.

    Raises:
        TooLongError: The turn does not fit without any earlier text.
        ValueError: As from the work.
    """
    # To set it frees the keys and values. An exchange before this one may have had less room.
    if chat.history != history:
        chat.history = history
    while True:
        try:
            return work()
        except TooLongError as error:
            if error.room < 0 or chat.history == NONE:
                raise
            # The memory has the rest.
            chat.history = _fewer(chat.history, error)


def shortened_note(chat: ChatSession, history: History, turn: Turn) -> str | None:
    """A remark for the client if a turn sees less of the chat's text than the history of the memory says; else None."""
    if chat.history == history:
        return None
    # Before the results of tools, more than the history is seen: the turns with the calls.
    seen = seen_text(chat.state, turn, chat.turns)
    told = f"the last {seen} tokens are" if seen else "none of its earlier text is"
    return f"the chat is longer than the model's window; {told} seen"


def _fewer(history: History, error: TooLongError) -> History:
    """A history of fewer tokens, half the window at most, for a turn that does not fit with this one."""
    tokens = (history if isinstance(history, int) else error.window) // 2
    while tokens > error.room:
        tokens //= 2
    return tokens or NONE
