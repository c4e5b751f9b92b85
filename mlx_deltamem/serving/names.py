"""The names that memories may have: each is the name of a file, and part of an address."""

import re

# A file whose name begins with a dot is an unfinished one: it is not listed, and a later save may delete it.
NAME_PATTERN = r"^(?!\.)[A-Za-z0-9._-]{1,64}$"
NAME_RULE = "1 to 64 letters, digits, dots, underscores and hyphens, without a dot at the beginning"


def is_name(text: str) -> bool:
    """Whether a text is the name of a memory."""
    # Unlike `match`, this takes no line break at the end.
    return re.fullmatch(NAME_PATTERN, text) is not None
