"""An episode: a history that is written into the memory, and questions that are answered from the memory."""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training.written import Written, part_of


@dataclass(frozen=True)
class Question:
    """A text that ends with an answer.

    Attributes:
        ids: The tokens: the system prompt, the messages that stay visible, and the answer.
        answer: The position of the answer's first token. It follows the template's generation prompt. The template's
            tokens at the end of the answer belong to the answer.
        value: The tokens `[begin, end)` that hold the value; empty if there is no value.
        written: Which tokens are written into the memory as they are read. Each question starts from the memory of the
            history, without other questions.
        target: The only thing that the answer is trained on, as in `Record`.
        weight: The weight of the answer tokens in the loss.
        kind: The kind that the answer is counted under separately.
    """

    ids: list[int]
    answer: int
    value: tuple[int, int]
    written: Written = False
    target: str = ""
    weight: float = 1.0
    kind: str = ""

    def last(self, length: int) -> "Question":
        """Return the last tokens of the question; they must hold the whole answer."""
        cut = max(len(self.ids) - length, 0)
        begin, end = self.value
        written = part_of(self.written, slice(cut, None))
        return replace(
            self, ids=self.ids[cut:], answer=self.answer - cut, value=(begin - cut, end - cut), written=written
        )


@dataclass(frozen=True)
class Episode:
    """A history and questions about it.

    Attributes:
        history: The tokens of the history with their message and sentence ids; may be empty.
        questions: The questions. Either all of them are written as they are read, or none.
        context: For each question, the whole chat as its text, for a teacher; empty if there is no teacher.
        written: Which tokens of the history are written. The others are only read.
        turns: The lengths of the passes over a history that is read in several passes. A pass does not see the text of
            another. Empty for a history that is read in one pass.
    """

    history: Segments
    questions: tuple[Question, ...]
    context: tuple[Question, ...] = ()
    written: Written = True
    turns: tuple[int, ...] = ()

    @property
    def passes(self) -> list[tuple[list[int], Written]]:
        """For each pass over the history, its tokens and which of them are written; one empty pass without history."""
        borders = [0, *accumulate(self.turns or (len(self.history.ids),))]
        return [
            (self.history.ids[begin:end], part_of(self.written, slice(begin, end))) for begin, end in pairwise(borders)
        ]

    @property
    def writes_questions(self) -> bool:
        """Whether any token of the questions is written as it is read."""
        return self.questions[0].written is not False

    def shares_history(self, other: "Episode") -> bool:
        """Whether the same passes over a history serve both episodes."""
        return (
            bool(self.history.ids)
            and self.history == other.history
            and (self.written, self.turns) == (other.written, other.turns)
            and self.writes_questions == other.writes_questions
        )

    def joined(self, other: "Episode") -> "Episode":
        """Join two episodes about the same history."""
        return replace(self, questions=self.questions + other.questions, context=self.context + other.context)
