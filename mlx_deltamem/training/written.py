"""Histories as they are written into the memory, and flags for the tokens that are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, joined, part, start_length, token_roles
from mlx_deltamem.sessions.turns.writing import AFTER, ALL, NONE, writes_role

# Whether the tokens of a text are written: a flag for all of them, or one for each token.
Written = bool | list[bool]


@dataclass(frozen=True)
class WrittenHistory:
    """The tokens of a history, and which of them are written. The attributes are those of `Episode`."""

    history: Segments = NO_SEGMENTS
    written: Written = True
    turns: tuple[int, ...] = ()

    @classmethod
    def in_one_pass(cls, write: str, segments: Segments, messages: Sequence[Message]) -> "WrittenHistory":
        """Make a history that is read as one text.

        Args:
            write: One of `mlx_deltamem.sessions.turns.writing.WRITES`, except `none`.
            segments: The tokens of the history.
            messages: The messages of the history.
        """
        return cls(segments, True if write == AFTER else written_flags(write, segments, messages))

    @classmethod
    def turn_by_turn(cls, parts: Sequence["WrittenHistory"]) -> "WrittenHistory":
        """Join turns into a history whose turns are read one by one, each after the tokens before the first message.

        A chat that does not see its earlier turns reads like this. The tokens before the first message are written with
        the first turn, if at all, and only read with the other turns.
        """
        segments: list[Segments] = []
        written: list[bool] = []
        messages = 0
        for index, turn in enumerate(parts):
            segments.append(turn.history.later(messages))
            messages = max(segments[-1].message_ids, default=-1) + 1
            flags = _without_start if index else _flags_of
            written += flags(turn.written, turn.history)
        return cls(joined(segments), written, tuple(len(each.ids) for each in segments))

    def last(self, length: int) -> "WrittenHistory":
        """Return the last tokens of the history. A history of turns keeps whole turns, or the end of its last turn."""
        kept = slice(max(len(self.history.ids) - length, 0), None)
        turns = list(self.turns)
        while len(turns) > 1 and sum(turns) > length:
            turns.pop(0)
        if len(turns) == 1:
            turns = [min(turns[0], length)]
        if turns:
            kept = slice(len(self.history.ids) - sum(turns), None)
        return WrittenHistory(part(self.history, kept), part_of(self.written, kept), tuple(turns))


def written_flags(write: str, segments: Segments, messages: Sequence[Message], started: bool = False) -> Written:
    """Return which tokens of a text are written as they are read.

    Args:
        write: One of `mlx_deltamem.sessions.turns.writing.WRITES`.
        segments: The tokens of the text.
        messages: The messages of the text.
        started: Whether an earlier turn has written the tokens before the first message. With `write` "all", they are
            not written again.
    """
    if write in (ALL, AFTER, NONE):
        return _without_start(True, segments) if started and write == ALL else write == ALL
    return [writes_role(write, role) for role in token_roles(segments, messages, 0)]


def part_of(written: Written, where: slice) -> Written:
    """Return the flags of a part of the tokens."""
    return written if isinstance(written, bool) else written[where]


def _without_start(written: Written, segments: Segments) -> list[bool]:
    """The same flags, with False for the tokens before the first message."""
    start = start_length(segments)
    return [False] * start + _flags_of(written, segments)[start:]


def _flags_of(written: Written, segments: Segments) -> list[bool]:
    """A flag for each token."""
    return [written] * len(segments.ids) if isinstance(written, bool) else written
