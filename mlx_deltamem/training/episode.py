"""An episode: a history that is written into the memory, and questions that are answered from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_deltamem.segments import Message, Segments, token_roles
from mlx_deltamem.writing import AFTER, ALL, NONE, writes_role

NOTHING = Segments([], [], [])
# Whether tokens are written into the memory: all of a text alike, or each.
Written = bool | list[bool]


@dataclass(frozen=True)
class Question:
    """A text with its answer.

    Attributes:
        ids: The tokens: system prompt, what is still visible, and the answer.
        answer: Where the answer begins: after the template's tokens that ask for it. Those that end it belong to it.
        value: The tokens `[begin, end)` that hold the value; empty where there is none.
        written: Whether the tokens are written into the memory as they are read, each question after the history alone.
    """

    ids: list[int]
    answer: int
    value: tuple[int, int]
    written: Written = False

    def last(self, length: int) -> "Question":
        """The question cut to its last tokens, among them the whole answer."""
        cut = max(len(self.ids) - length, 0)
        begin, end = self.value
        written = self.written if isinstance(self.written, bool) else self.written[cut:]
        return Question(self.ids[cut:], self.answer - cut, (begin - cut, end - cut), written)


@dataclass(frozen=True)
class Episode:
    """A history and questions about it.

    Attributes:
        history: Its tokens and their spans; there may be none.
        questions: What is asked and answered; all of them are written as they are read, or none is.
        context: For each question, the whole chat as its text, which a teacher may read; empty where nobody wants it.
        written: Whether the history's tokens are written; the others are only read.
    """

    history: Segments
    questions: tuple[Question, ...]
    context: tuple[Question, ...] = ()
    written: Written = True

    @property
    def writes_questions(self) -> bool:
        """Whether any token of the questions is written as it is read."""
        return self.questions[0].written is not False

    def shares_history(self, other: "Episode") -> bool:
        """Whether one pass over a history serves both."""
        return (
            bool(self.history.ids)
            and self.history == other.history
            and self.written == other.written
            and self.writes_questions == other.writes_questions
        )

    def joined(self, other: "Episode") -> "Episode":
        """One episode of two about the same history."""
        return replace(self, questions=self.questions + other.questions, context=self.context + other.context)


def written_history(write: str, segments: Segments, messages: Sequence[Message]) -> Written:
    """Which tokens of a history are written.

    Args:
        write: One of `mlx_deltamem.writing.WRITES`.
        segments: All tokens of the history.
        messages: What they are of.
    """
    return True if write == AFTER or not segments.ids else _written(write, segments, messages)


def written_text(write: str, segments: Segments, messages: Sequence[Message]) -> Written:
    """Which tokens of a text with its answer are written as they are read; arguments as for `written_history`."""
    return False if write == AFTER else _written(write, segments, messages)


def _written(write: str, segments: Segments, messages: Sequence[Message]) -> Written:
    if write in (ALL, NONE):
        return write == ALL
    return [writes_role(write, role) for role in token_roles(segments, messages, 0)]


def last_tokens(segments: Segments, written: Written, length: int) -> tuple[Segments, Written]:
    """A history cut to its last tokens."""
    kept = Segments(segments.ids[-length:], segments.message_ids[-length:], segments.sentence_ids[-length:])
    return kept, written if isinstance(written, bool) else written[-length:]
