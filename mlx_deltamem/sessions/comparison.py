"""The same question with the memory and without."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from mlx_deltamem.sessions.session import ChatSession

WITH, WITHOUT = "with the memory", "without it"


def compare(chat: ChatSession, question: str, **options: object) -> dict[str, str]:
    """Ask a question twice, once with a chat's memory and once with an empty one; the chat stays as it is.

    Args:
        chat: The chat. What it sees of earlier turns, both see.
        question: A message of the user.
        options: As for `ChatSession.send`.

    Returns:
        The replies, by `WITH` and `WITHOUT`.

    Raises:
        ValueError: As `ChatSession.send`.
    """
    chats = {WITH: chat.fork(), WITHOUT: chat.without_memory()}
    return {name: each.send(question, write="none", **options) for name, each in chats.items()}


def side_by_side(replies: Mapping[str, str]) -> Table:
    """Replies in columns, for the terminal."""
    table = Table(*map(escape, replies))
    table.add_row(*(escape(reply.strip()) for reply in replies.values()))
    return table
