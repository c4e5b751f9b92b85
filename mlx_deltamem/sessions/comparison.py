"""Ask the same question with a chat's memory and without it."""

from collections.abc import Mapping
from typing import Unpack

from rich.markup import escape
from rich.table import Table

from mlx_deltamem.sessions.reply import ReplyOptions
from mlx_deltamem.sessions.session import ChatSession

WITH, WITHOUT = "with the memory", "without it"


def compare(chat: ChatSession, question: str, **options: Unpack[ReplyOptions]) -> dict[str, str]:
    """Ask a question twice: with the chat's memory, and with an empty memory. The chat is not changed.

    Args:
        chat: The chat. Both questions see the same text of its earlier turns.
        question: A message of the user.
        options: As in `ChatSession.stream`.

    Returns:
        The replies, under `WITH` and `WITHOUT`.

    Raises:
        ValueError: As `ChatSession.send`.
    """
    chats = {WITH: chat.fork(), WITHOUT: chat.without_memory()}
    return {name: each.send(question, write="none", **options) for name, each in chats.items()}


def side_by_side(replies: Mapping[str, str]) -> Table:
    """A table for the terminal, with a column for each reply."""
    table = Table(*map(escape, replies))
    table.add_row(*(escape(reply.strip()) for reply in replies.values()))
    return table
