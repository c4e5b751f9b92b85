"""Ask the same question with a chat's memory and without it."""

from typing import Unpack

from mlx_deltamem.sessions.replies.reply import RegenerateOptions
from mlx_deltamem.sessions.session import ChatSession

WITH, WITHOUT = "with the memory", "without it"


class CompareOptions(RegenerateOptions, total=False):
    """Options of `compare`, which are described in `ChatSession.stream`."""

    max_tokens: int


def compare(chat: ChatSession, question: str, **options: Unpack[CompareOptions]) -> dict[str, str]:
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
