"""Numbers of messages, replies and chats that a user types."""

# No chat has so many messages. Python refuses to read numbers of more than 4,300 digits.
_MOST_DIGITS = 18


def typed_number(text: str) -> int | None:
    """The number in a text; None if it is none, or has more digits than the number of anything in a chat."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return int(text) if is_number else None
