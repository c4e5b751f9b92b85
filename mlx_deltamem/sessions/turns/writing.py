"""The `write` option: which tokens of a turn are written into the memory.

`all` is the reference's way, and the default. The guide HOW.md has measurements of the others.
"""

WRITES = ("all", "after", "user", "assistant", "none")
ALL, AFTER, NONE = "all", "after", "none"

MEANINGS = {
    "all": "every token as it is read",
    "after": "a turn is read with the memory from before it, and written when it has ended",
    "user": "the user's messages only",
    "assistant": "the replies only",
    "none": "nothing",
}


def parse_write(write: object) -> str:
    """Check a value of the option.

    Raises:
        ValueError: It is not one of `WRITES`.
    """
    if not isinstance(write, str) or write not in WRITES:
        raise ValueError(f"write is {write!r}; expected one of {', '.join(WRITES)}")
    return write


def parse_remembered_write(write: object) -> str:
    """Check which messages of a text to remember are written.

    Raises:
        ValueError: It is not `all`, `user` or `assistant`.
    """
    if parse_write(write) not in (ALL, "user", "assistant"):
        raise ValueError(f"write is {write!r} for a text to remember; expected all, user or assistant")
    return str(write)


def writes_role(write: str, role: str) -> bool:
    """Whether the tokens of a role are written as they are read.

    Args:
        write: One of `WRITES`. With `after`, no token is written as it is read.
        role: `system`, `user`, `assistant` or `tool`.
    """
    return write in (ALL, role)
