"""The names of the `write` modes, which decide which tokens of a chat are written into the memory.

`all` is the reference's way, and the default; the README ("How it works") says what was measured.
"""

WRITES = ("all", "after", "user", "assistant", "none")
ALL, AFTER, NONE = "all", "after", "none"

MEANINGS = {
    "all": "every token as it is read",
    "after": "a turn is read with the memory as it was, and written when it has ended",
    "user": "the user's messages only",
    "assistant": "the replies only",
    "none": "nothing",
}


def parse_write(write: str) -> str:
    """Check the name of a mode.

    Raises:
        ValueError: It is none of `WRITES`.
    """
    if write not in WRITES:
        raise ValueError(f"write is {write!r}; expected one of {', '.join(WRITES)}")
    return write


def writes_role(write: str, role: str) -> bool:
    """Whether tokens of a role are written as they are read.

    Args:
        write: One of `WRITES`. `after` writes nothing as it is read.
        role: `system`, `user`, `assistant` or `tool`.
    """
    return write in (ALL, role)
