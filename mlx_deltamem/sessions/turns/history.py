"""The `history` option: how much of the earlier turns a model sees beside its memory."""

from mlx_deltamem.options.rule import shown

# `full`, `none`, or a number of tokens.
History = str | int
FULL, NONE = "full", "none"
# Other programs that read session files and exports have whole numbers of 64 bits.
_TOO_MANY = 2**63


def parse_history(history: object) -> History:
    """Check a history: `full`, `none` or a number of tokens (an int, or its digits as text).

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(history, str) and history in (FULL, NONE):
        return history
    # Python does not read a number of thousands of digits.
    is_number = isinstance(history, str) and history.isascii() and history.isdigit() and len(history) < 100
    tokens = int(history) if isinstance(history, str) and is_number else history
    # isinstance(True, int) is True.
    if type(tokens) is not int or not 1 <= tokens < _TOO_MANY:
        raise ValueError(
            f"history is {shown(history)}; expected 'full', 'none' or a number of tokens >= 1 and below 2**63"
        )
    return tokens
