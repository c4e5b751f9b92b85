"""Find the place in a chat from which a client goes on that shows the end of its messages only.

Clients with a small window leave out the oldest messages. What they show does not begin as a conversation of the chat
does, so `find_place` does not know it.
"""

from collections.abc import Sequence

from mlx_deltamem.sessions.turns.place import Asked, Exchange, Place, are_same_messages, is_same_reply
from mlx_deltamem.sessions.turns.turn import Turn, turns_by_conversation


def find_trimmed(
    turns: Sequence[Turn], question: Asked, think_end: str | None = None, conversation: str | None = None
) -> Place | None:
    """The place after the exchanges that a client shows, at the end of a conversation or before its last turn.

    Before the last turn, the client asks for its reply again. If the conversation is known, it may also have edited
    the messages of that turn.

    Args:
        turns: All turns of the chat.
        question: What the client shows.
        think_end: As for `mlx_deltamem.sessions.turns.place.turn_ids`.
        conversation: The only conversation to look at; None: all of them, the newest one first.

    Returns:
        None if no conversation has these exchanges there, or if none is shown.
    """
    shown = list(question.earlier)
    if question.greeting is not None:
        shown.insert(0, Exchange((), question.greeting))
    if not shown:
        return None
    for name, said in reversed(turns_by_conversation(turns, conversation).items()):
        if _end_with(said, shown, think_end):
            return Place(name, len(said))
        is_again = conversation is not None or are_same_messages(said[-1].messages, question.new)
        if is_again and _end_with(said[:-1], shown, think_end):
            return Place(name, len(said) - 1)
    return None


def _end_with(said: Sequence[Turn], shown: Sequence[Exchange], think_end: str | None) -> bool:
    """Whether turns end with some exchanges. The first one may have lost its messages."""
    last = said[-len(shown) :]
    return len(last) == len(shown) and all(
        (not exchange.messages or are_same_messages(turn.messages, exchange.messages))
        and is_same_reply(turn, exchange.reply, think_end)
        for turn, exchange in zip(last, shown, strict=True)
    )
