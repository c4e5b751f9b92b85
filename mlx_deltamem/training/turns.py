"""The roles and the turns of a chat."""

from collections.abc import Sequence

from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.training.records import listed


def split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Split a chat into the leading system prompts and the rest."""
    leading = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:leading]), list(messages[leading:])


def exchanges(messages: Sequence[Message]) -> list[list[Message]]:
    """Split a chat without system prompts into its turns, each up to and including the reply."""
    found: list[list[Message]] = [[]]
    for message in messages:
        found[-1].append(message)
        if message["role"] == "assistant":
            found.append([])
    return [exchange for exchange in found if exchange]


def wrong_roles(messages: Sequence[Message]) -> str:
    """Return the problem with the roles of a chat, as the end of a sentence about its record; "" if there is none."""
    roles = [message["role"] for message in split_system(messages)[1]]
    if strange := set(roles) - {"user", "assistant"}:
        return f"has messages of {listed(sorted(strange))}; expected system (first), user and assistant"
    if roles[-1:] != ["assistant"]:
        return "does not end with an answer; expected an assistant's message last"
    if roles[-2:-1] != ["user"]:
        return "has no question before its last answer; expected a user's message there"
    return ""
