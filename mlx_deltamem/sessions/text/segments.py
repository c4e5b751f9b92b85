"""Tokens of a chat, with the message and the sentence that each token belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_deltamem.sessions.text.messages import Message


@dataclass(frozen=True)
class Segments:
    """Tokens, and for each token the index of its message and the index of its sentence.

    The three lists have the same length. Adapters that write the mean of each message or sentence need the indices.

    Attributes:
        ids: The token ids.
        message_ids: The index of each token's message in the chat. System prompts are not counted. -1 for the tokens
            of system prompts, for tokens that the template writes before the first message, and for the generation
            prompt (the tokens that ask the model for a reply).
        sentence_ids: The index of each token's sentence in the chat; -1 outside the content of messages.
    """

    ids: list[int]
    message_ids: list[int]
    sentence_ids: list[int]

    @classmethod
    def without_spans(cls, ids: Sequence[int]) -> "Segments":
        """Tokens that belong to no message and to no sentence."""
        return cls(list(ids), [-1] * len(ids), [-1] * len(ids))

    def later(self, messages: int) -> "Segments":
        """The same tokens with this number added to their message indices."""
        moved = [index + messages if index >= 0 else index for index in self.message_ids]
        return Segments(self.ids, moved, self.sentence_ids)


NO_SEGMENTS = Segments([], [], [])


def part(segments: Segments, where: slice) -> Segments:
    """The tokens in a slice."""
    return Segments(segments.ids[where], segments.message_ids[where], segments.sentence_ids[where])


def is_beginning(some: Segments, whole: Segments) -> bool:
    """Whether the tokens are the first ones of the whole, and not all of them."""
    count = len(some.ids)
    return count < len(whole.ids) and some.ids == whole.ids[:count]


def joined(parts: Sequence[Segments]) -> Segments:
    """The tokens of several segments, one after the other. The indices are not changed."""
    return Segments(
        [token for part in parts for token in part.ids],
        [index for part in parts for index in part.message_ids],
        [index for part in parts for index in part.sentence_ids],
    )


def start_length(segments: Segments) -> int:
    """The length of the visible start, in tokens.

    The visible start is the part of a chat before its first message: the system prompt, and what the template writes
    before it. The model sees it in every turn.
    """
    return next((place for place, message in enumerate(segments.message_ids) if message >= 0), 0)


def token_roles(segments: Segments, messages: Sequence[Message], first_message: int) -> list[str]:
    """The role of the message that each token of an opening belongs to.

    Args:
        segments: The opening: the tokens of new messages, and the generation prompt.
        messages: The new messages. System prompts may be among them.
        first_message: The message index of the first message that is not a system prompt.

    Returns:
        One role for each token. A token without a message index gets `system` if it comes before the last message,
        and `assistant` (the generation prompt) if it comes after it. So a system prompt at the very end counts as
        part of the generation prompt: the two cannot be told apart.

    Raises:
        ValueError: A token belongs to a message that is not in `messages`.
    """
    roles = [message["role"] for message in messages if message["role"] != "system"]
    with_message = [place for place, index in enumerate(segments.message_ids) if index >= 0]
    found = []
    for place, index in enumerate(segments.message_ids):
        if index < 0:
            found.append("assistant" if with_message and place > with_message[-1] else "system")
        elif 0 <= index - first_message < len(roles):
            found.append(roles[index - first_message])
        else:
            raise ValueError(
                f"a token belongs to message {index}; expected one of the {len(roles)} messages from {first_message} "
                "on: give the messages of the opening"
            )
    return found


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """The number of items at the beginning of two sequences that are equal in both."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
