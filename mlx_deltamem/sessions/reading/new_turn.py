"""The turn that new messages begin, before it runs; also with a reply that is known."""

from dataclasses import replace

from mlx_deltamem.core.use import is_writing
from mlx_deltamem.sessions.reading.fitting import check_fits, check_fits_with_reply
from mlx_deltamem.sessions.text.messages import Message, as_generated
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import NONE


def turn_to_read(state: ChatState, messages: tuple[Message, ...], write: str) -> Turn:
    """The turn that messages would begin. The chat is not changed, and nothing runs.

    Args:
        state: The chat.
        messages: The messages.
        write: Which part of the turn is written, one of `WRITES`. Nothing is while the model is read only.

    Raises:
        ValueError: The chat template refuses the messages, or they do not fit into the model's window.
    """
    opening = state.text.opening(state.turns, messages)
    turn = Turn(messages, opening, write if is_writing(state.model) else NONE, state.conversation)
    check_fits(state, turn)
    return turn


def with_reply(state: ChatState, turn: Turn, reply: Message) -> Turn:
    """A new turn with a reply that was not generated.

    Args:
        state: The chat.
        turn: The turn, as from `turn_to_read`.
        reply: The reply. It may have tool calls, which are read behind its text.

    Raises:
        ValueError: The chat template refuses the reply, or the turn does not fit into the model's window.
    """
    text = state.text
    turn = replace(
        turn,
        reply=reply["content"],
        reply_ids=tuple(text.reply_ids(state.turns, turn.messages, reply)),
        ending=text.ending(state.turns, turn.messages, reply["content"]),
        tool_calls=as_generated(reply),
    )
    check_fits_with_reply(state, len(state.turns), turn)
    return turn
