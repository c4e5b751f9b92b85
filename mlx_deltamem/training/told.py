"""Histories as they are written into the memory, and which tokens of a text are written, by what `write` says."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_deltamem.sessions.read import start_length
from mlx_deltamem.sessions.template import Message, Segments, token_roles
from mlx_deltamem.sessions.turn import NO_SEGMENTS, joined, part
from mlx_deltamem.sessions.writing import AFTER, ALL, NONE, writes_role

# Whether tokens are written into the memory: all of a text alike, or each.
Written = bool | list[bool]


@dataclass(frozen=True)
class Told:
    """A history as it is written: see `Episode`."""

    history: Segments = NO_SEGMENTS
    written: Written = True
    turns: tuple[int, ...] = ()

    @classmethod
    def in_one_pass(cls, write: str, segments: Segments, messages: Sequence[Message]) -> "Told":
        """A history that is read as one text.

        Args:
            write: One of `mlx_deltamem.sessions.writing.WRITES`, not `none`.
            segments: Its tokens.
            messages: What they are of.
        """
        return cls(segments, True if write == AFTER else written_text(write, segments, messages))

    @classmethod
    def turn_by_turn(cls, parts: Sequence["Told"]) -> "Told":
        """A history of which each part is read as a text of its own, behind the visible start.

        As in a chat that does not see its earlier turns: the start is written with the first turn, where that is, and
        only read with the others.
        """
        segments, written, messages = [], [], 0
        for index, turn in enumerate(parts):
            segments.append(turn.history.later(messages))
            messages = max(segments[-1].message_ids, default=-1) + 1
            written += without_start(turn.written, turn.history) if index else flags_of(turn.written, turn.history)
        return cls(joined(segments), written, tuple(len(each.ids) for each in segments))

    def last(self, length: int) -> "Told":
        """The history cut to its last tokens; turn by turn, to whole turns and the end of one that is alone."""
        kept = slice(max(len(self.history.ids) - length, 0), None)
        turns = list(self.turns)
        while len(turns) > 1 and sum(turns) > length:
            turns.pop(0)
        if len(turns) == 1:
            turns = [min(turns[0], length)]
        if turns:
            kept = slice(len(self.history.ids) - sum(turns), None)
        return Told(part(self.history, kept), part_of(self.written, kept), tuple(turns))


def written_text(write: str, segments: Segments, messages: Sequence[Message]) -> Written:
    """Which tokens of a text are written as they are read; arguments as for `Told.in_one_pass`."""
    if write in (ALL, AFTER, NONE):
        return write == ALL
    return [writes_role(write, role) for role in token_roles(segments, messages, 0)]


def without_start(written: Written, segments: Segments) -> list[bool]:
    """The same flags, with False for what comes before the first message."""
    start = start_length(segments)
    return [False] * start + flags_of(written, segments)[start:]


def flags_of(written: Written, segments: Segments) -> list[bool]:
    """A flag for each token."""
    return [written] * len(segments.ids) if isinstance(written, bool) else written


def part_of(written: Written, where: slice) -> Written:
    """The flags of some of the tokens."""
    return written if isinstance(written, bool) else written[where]
