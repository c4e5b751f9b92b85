"""One turn of a chat: what was said or remembered, the tokens that were run for it, and the ways back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx

from mlx_deltamem.sessions.drift import Drift
from mlx_deltamem.sessions.history import Mark
from mlx_deltamem.sessions.template import Message, Segments, token_roles
from mlx_deltamem.sessions.writing import AFTER, ALL, NONE, writes_role

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
    """Messages and the reply to them, or a text that was remembered. Nothing in it is ever changed, so that chats may
    share it.

    Attributes:
        messages: What was said to the model, or what it was to remember.
        opening: The tokens of the messages in their template, with the generation prompt where a reply follows. The
            chat's first turn, and a text that was remembered, begin with the visible start.
        write: What of the turn is written into the memory, one of `WRITES`.
        remembered: The messages were written into the memory, are no part of the chat's text and have no reply.
        memory_set: The memory was set just before the turn (`ChatSession.memory = …`), to what `before` has.
        before, between: The borders before the messages and before the reply; None where they were not kept.
        logits: What the model said to the messages, `[1, V]`; kept for the last turn.
        reply: The text of the reply.
        reply_ids, ending: The tokens of the reply as it was generated, and what the template ends it with.
        tool_calls: The calls in the reply, in OpenAI's form.
        drift: What the turn did to the memory; None where that was not kept.
    """

    messages: tuple[Message, ...]
    opening: Segments
    write: str = ALL
    remembered: bool = False
    memory_set: bool = False
    before: Border | None = None
    between: Border | None = None
    logits: mx.array | None = None
    reply: str = ""
    reply_ids: tuple[int, ...] = ()
    ending: Segments = NO_SEGMENTS
    tool_calls: tuple[dict[str, object], ...] = ()
    drift: Drift | None = None

    def as_earlier(self) -> "Turn":
        """The turn as it is kept when another one follows."""
        before, between = (border and border.without_copies() for border in (self.before, self.between))
        return replace(self, before=before, between=between, logits=None)

    @property
    def text(self) -> str:
        """The messages of the turn as one text."""
        return "\n".join(message["content"] for message in self.messages)

    @property
    def writing(self) -> bool:
        """Whether any of the turn is written into the memory."""
        return self.write != NONE

    @cached_property
    def opening_written(self) -> list[bool]:
        """For each token of the opening, whether it is written as it is read."""
        if self.remembered:
            # The visible start is read, and no part of what is remembered.
            return [role != "system" and writes_role(self.write, role) for role in self._opening_roles]
        return [writes_role(self.write, role) for role in self._opening_roles]

    @property
    def reply_written(self) -> bool:
        """Whether the reply, and what the template ends it with, is written as it is generated."""
        return writes_role(self.write, "assistant")

    @property
    def is_written_when_ended(self) -> bool:
        return self.write == AFTER and not self.remembered

    @property
    def _opening_roles(self) -> list[str]:
        """The role of each token: of the visible start `system`, of the generation prompt `assistant`."""
        first = min((index for index in self.opening.message_ids if index >= 0), default=0)
        return token_roles(self.opening, self.messages, first)

    @property
    def reply_segments(self) -> Segments:
        """The reply's tokens: of the message that its ending is of, and of one sentence."""
        count = len(self.reply_ids)
        message = max(self.opening.message_ids, default=-1) + 1
        return Segments(list(self.reply_ids), [message] * count, [self.reply_sentence] * count)

    @property
    def reply_sentence(self) -> int:
        """The id of the one sentence that the reply counts as."""
        return max(self.opening.sentence_ids, default=-1) + 1

    @property
    def length(self) -> int:
        """The number of all tokens of the turn."""
        return len(self.opening.ids) + len(self.reply_ids) + len(self.ending.ids)

    @property
    def segments(self) -> Segments:
        """All tokens of the turn."""
        return joined([self.opening, self.reply_segments, self.ending])


def part(segments: Segments, where: slice) -> Segments:
    """Some of the tokens."""
    return Segments(segments.ids[where], segments.message_ids[where], segments.sentence_ids[where])


def segments_of(turns: Iterable[Turn]) -> Segments:
    """All tokens of a chat's text, one turn after the other; what was remembered is no part of it."""
    return joined([turn.segments for turn in turns if not turn.remembered])


def joined(parts: Sequence[Segments]) -> Segments:
    """The tokens of some texts, one after the other."""
    return Segments(
        [token for part in parts for token in part.ids],
        [index for part in parts for index in part.message_ids],
        [index for part in parts for index in part.sentence_ids],
    )
