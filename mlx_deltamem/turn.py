"""One turn of a chat: what was said, the tokens that were run for it, and the ways back to where it began."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_deltamem.drift import Drift
from mlx_deltamem.history import Mark
from mlx_deltamem.segments import Segments

States = list[mx.array]
NO_SEGMENTS = Segments([], [], [])


@dataclass(frozen=True)
class Border:
    """A place between two messages.

    Attributes:
        states: The memory there, by layer index.
        text: The end of the text there; None where it was not kept.
    """

    states: States
    text: Mark | None

    def without_copies(self) -> "Border":
        """The border as it can be kept for long: the memory, and of the text only its length."""
        return replace(self, text=self.text and self.text.without_copies())


@dataclass(frozen=True)
class Turn:
    """A message and its reply. Nothing in it is ever changed, so that chats may share it.

    Attributes:
        user, reply: Their texts.
        opening, reply_ids, ending: The tokens run for them: the message in its template, the reply as it was
            generated, and what the template ends it with.
        writing: Whether the memory was written.
        before, between: The borders before the message and before the reply; None where they were not kept.
        logits: What the model said to the message, `[1, V]`; kept for the last turn.
        drift: What the turn did to the memory; None where that was not kept.
    """

    user: str
    opening: Segments
    writing: bool
    before: Border | None = None
    between: Border | None = None
    logits: mx.array | None = None
    reply: str = ""
    reply_ids: tuple[int, ...] = ()
    ending: Segments = NO_SEGMENTS
    drift: Drift | None = None

    def as_earlier(self) -> "Turn":
        """The turn as it is kept when another one follows."""
        before, between = (border and border.without_copies() for border in (self.before, self.between))
        return replace(self, before=before, between=between, logits=None)

    @property
    def reply_segments(self) -> Segments:
        """The reply's tokens: of the message that its ending is of, and of one sentence."""
        count = len(self.reply_ids)
        message = max(self.opening.message_ids) + 1
        return Segments(list(self.reply_ids), [message] * count, [self.reply_sentence] * count)

    @property
    def reply_sentence(self) -> int:
        """The id of the one sentence that the reply counts as."""
        return max(self.opening.sentence_ids) + 1


def part(segments: Segments, where: slice) -> Segments:
    """Some of the tokens."""
    return Segments(segments.ids[where], segments.message_ids[where], segments.sentence_ids[where])


def segments_of(turns: Iterable[Turn]) -> Segments:
    """All tokens of some turns, one after the other."""
    parts = [part for turn in turns for part in (turn.opening, turn.reply_segments, turn.ending)]
    return Segments(
        [token for part in parts for token in part.ids],
        [index for part in parts for index in part.message_ids],
        [index for part in parts for index in part.sentence_ids],
    )
