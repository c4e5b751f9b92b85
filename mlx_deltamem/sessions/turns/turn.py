"""One turn of a chat: its messages and reply, or a text that was remembered, with their tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx

from mlx_deltamem.sessions.text.messages import Message, ToolCall
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, joined, part, token_roles
from mlx_deltamem.sessions.turns.drift import Drift
from mlx_deltamem.sessions.turns.restore import RestorePoint
from mlx_deltamem.sessions.turns.writing import AFTER, ALL, writes_role


@dataclass(frozen=True)
class Turn:
    """Messages and the reply to them, or a text that was remembered.

    A turn never changes, so several chats may share it.

    Attributes:
        messages: The messages that the model replied to, or the messages that were remembered.
        opening: The tokens of the messages, as the chat template writes them, and the generation prompt if a reply
            follows. The opening of the first turn, and of a remembered text, begins with the visible start.
        write: Which part of the turn is written into the memory, one of `WRITES`.
        conversation: The name of the conversation that the turn is part of. The model does not see the text of other
            conversations; the memory is the same in all.
        remembered: Whether the messages were remembered: written into the memory by `ChatSession.remember`. Such
            messages are not part of the chat's text and have no reply.
        memory_set: Whether the user set the memory just before the turn (`ChatSession.memory = ...`). `before` then
            holds the memory that was set.
        before, between: The places before the messages and before the reply; None if they were not kept.
        logits: The logits after the opening, `[1, V]`; kept for the last turn only.
        reply: The text of the reply.
        reply_ids: The tokens of the reply as they were generated.
        ending: The tokens that the template writes after the reply.
        tool_calls: The tool calls in the reply.
        drift: The effect of the turn on the memory; None if it was not kept.
    """

    messages: tuple[Message, ...]
    opening: Segments
    write: str = ALL
    conversation: str = ""
    remembered: bool = False
    memory_set: bool = False
    before: RestorePoint | None = None
    between: RestorePoint | None = None
    logits: mx.array | None = None
    reply: str = ""
    reply_ids: tuple[int, ...] = ()
    ending: Segments = NO_SEGMENTS
    tool_calls: tuple[ToolCall, ...] = ()
    drift: Drift | None = None

    def as_earlier(self) -> "Turn":
        """The turn without what only the last turn of a chat keeps."""
        before, between = (place and place.without_copies() for place in (self.before, self.between))
        return replace(self, before=before, between=between, logits=None)

    def is_same_run(self, other: "Turn") -> bool:
        """Whether both are the same turn, and it has not run again in one of them."""
        # Each run makes a new drift, and what is kept of a turn later has that drift.
        return self is other or (self.opening is other.opening and self.drift is other.drift)

    @property
    def text(self) -> str:
        """The contents of the messages, one per line."""
        return "\n".join(message["content"] for message in self.messages)

    @cached_property
    def opening_written(self) -> list[bool]:
        """For each token of the opening, whether it is written into the memory as it is read."""
        first = min((index for index in self.opening.message_ids if index >= 0), default=0)
        roles = token_roles(self.opening, self.messages, first)
        # The visible start is not part of a remembered text: it is read only.
        return [writes_role(self.write, role) and not (self.remembered and role == "system") for role in roles]

    def part_of_opening(self, where: slice) -> tuple[Segments, list[bool]]:
        """A part of the opening, and for each of its tokens whether it is written into the memory as it is read."""
        return part(self.opening, where), self.opening_written[where]

    @property
    def reply_written(self) -> bool:
        """Whether the reply and the ending are written into the memory as the reply is generated."""
        return writes_role(self.write, "assistant")

    @property
    def is_written_when_ended(self) -> bool:
        """Whether the turn is read with the memory from before it, and written as a whole when it has ended."""
        return self.write == AFTER and not self.remembered

    @property
    def reply_segments(self) -> Segments:
        """The tokens of the reply. They get the message index that the ending has, and count as one sentence."""
        count = len(self.reply_ids)
        message = max(self.opening.message_ids, default=-1) + 1
        return Segments(list(self.reply_ids), [message] * count, [self.reply_sentence] * count)

    @property
    def reply_sentence(self) -> int:
        """The sentence index of the reply, which counts as one sentence."""
        return max(self.opening.sentence_ids, default=-1) + 1

    @property
    def length(self) -> int:
        """The number of tokens in the turn."""
        return len(self.opening.ids) + len(self.reply_ids) + len(self.ending.ids)

    @property
    def segments(self) -> Segments:
        """All tokens of the turn."""
        return joined([self.opening, self.reply_segments, self.ending])


def are_same_runs(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Whether two lists have the same turns, and none of them has run again in one of the lists."""
    return len(turns) == len(others) and all(map(Turn.is_same_run, turns, others))


def said_turns(turns: Iterable[Turn], conversation: str | None = None) -> list[Turn]:
    """The turns that are part of a chat's text: all but those that were remembered.

    Args:
        turns: All turns.
        conversation: The conversation; None: all conversations.
    """
    return [
        turn for turn in turns if not turn.remembered and (conversation is None or turn.conversation == conversation)
    ]


def turns_by_conversation(turns: Iterable[Turn], conversation: str | None = None) -> dict[str, list[Turn]]:
    """The turns of `said_turns`, by their conversation. The conversation that began last comes last."""
    found: dict[str, list[Turn]] = {}
    for turn in said_turns(turns, conversation):
        found.setdefault(turn.conversation, []).append(turn)
    return found


def segments_of(turns: Iterable[Turn], conversation: str | None = None) -> Segments:
    """All tokens of a chat's text, or of one conversation. Remembered texts are not part of it."""
    return joined([turn.segments for turn in said_turns(turns, conversation)])
