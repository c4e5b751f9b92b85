"""The `history` option: how much of the earlier turns a model sees beside its memory."""

# `full`, `none`, or a number of tokens.
History = str | int
FULL, NONE = "full", "none"


def parse_history(history: object) -> History:
    """Check a history: `full`, `none` or a number of tokens (an int, or its digits as text).

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(history, str) and history in (FULL, NONE):
        return history
    tokens = int(history) if isinstance(history, str) and history.isascii() and history.isdigit() else history
    # isinstance(True, int) is True.
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"history is {history!r}; expected 'full', 'none' or a number of tokens >= 1")
    return tokens
