"""An episode: a history that is written into the memory, and questions that are answered from it."""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.training.told import Written, part_of


@dataclass(frozen=True)
class Question:
    """A text with its answer.

    Attributes:
        ids: The tokens: system prompt, what is still visible, and the answer.
        answer: Where the answer begins: after the template's tokens that ask for it. Those that end it belong to it.
        value: The tokens `[begin, end)` that hold the value; empty where there is none.
        written: Whether the tokens are written into the memory as they are read, each question after the history alone.
        target: What alone the answer is learned from: see `Record`.
        weight: Of the answer's tokens in the loss.
        kind: What the answer is counted under, too.
    """

    ids: list[int]
    answer: int
    value: tuple[int, int]
    written: Written = False
    target: str = ""
    weight: float = 1.0
    kind: str = ""

    def last(self, length: int) -> "Question":
        """The question cut to its last tokens, among them the whole answer."""
        cut = max(len(self.ids) - length, 0)
        begin, end = self.value
        written = part_of(self.written, slice(cut, None))
        where = {"answer": self.answer - cut, "value": (begin - cut, end - cut)}
        return replace(self, ids=self.ids[cut:], written=written, **where)


@dataclass(frozen=True)
class Episode:
    """A history and questions about it.

    Attributes:
        history: Its tokens and their spans; there may be none.
        questions: What is asked and answered; all of them are written as they are read, or none is.
        context: For each question, the whole chat as its text, which a teacher may read; empty where nobody wants it.
        written: Whether the history's tokens are written; the others are only read.
        turns: Where the history is written in several passes, none of which sees the text of another, their lengths.
    """

    history: Segments
    questions: tuple[Question, ...]
    context: tuple[Question, ...] = ()
    written: Written = True
    turns: tuple[int, ...] = ()

    @property
    def passes(self) -> list[tuple[list[int], Written]]:
        """The tokens of each pass over the history, and which of them are written; where it is empty, an empty one."""
        borders = [0, *accumulate(self.turns or (len(self.history.ids),))]
        return [
            (self.history.ids[begin:end], part_of(self.written, slice(begin, end))) for begin, end in pairwise(borders)
        ]

    @property
    def writes_questions(self) -> bool:
        """Whether any token of the questions is written as it is read."""
        return self.questions[0].written is not False

    def shares_history(self, other: "Episode") -> bool:
        """Whether one pass over a history serves both."""
        return (
            bool(self.history.ids)
            and self.history == other.history
            and (self.written, self.turns) == (other.written, other.turns)
            and self.writes_questions == other.writes_questions
        )

    def joined(self, other: "Episode") -> "Episode":
        """One episode of two about the same history."""
        return replace(self, questions=self.questions + other.questions, context=self.context + other.context)
