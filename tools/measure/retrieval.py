"""How often BM25 finds the turn with the answer, and the bytes that text, index and memory take.

The questions are those of `--recall-natural` that have an answer in their chat. They are asked of their own chat, and
of the turns of all chats together. Run: python -m tools.measure.retrieval
"""

from collections.abc import Sequence

import numpy as np

from mlx_deltamem.evaluation.baselines.retrieval import Bm25Index, best
from mlx_deltamem.evaluation.baselines.turns import text_bytes, turn_texts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.statistics import Bootstrap
from mlx_deltamem.evaluation.tasks.natural import natural_questions

_TURNS = (1, 2, 4, 8)


def main() -> None:
    """Print the table."""
    questions = list(natural_questions(()))
    asked = [question for question in questions if question.evidence]
    texts = [text for question in questions for text in turn_texts(question)]
    index = Bm25Index(texts)
    print(f"{len(asked)} questions with an answer in their chat, of {len(questions)}; {len(texts)} turns in all chats")
    for count in _TURNS:
        own = [_found(best(Bm25Index(turn_texts(each)).scores(each.question), count), _told(each)) for each in asked]
        together = _together(questions, index, count)
        print(f"the answer is among {count} turns: own chat {_share(own)}, all chats {_share(together)}")
    kept, stored = sum(map(text_bytes, questions)), index.kept_bytes()
    print(f"bytes: {kept / len(questions):.0f} of text a chat; {kept:,} of text and {stored:,} of index in all")


def _together(questions: Sequence[Question], index: Bm25Index, count: int) -> list[float]:
    """For each question with an answer, the share of its evidence among the turns that are found in all chats."""
    shares, first = [], 0
    for question in questions:
        if question.evidence:
            evidence = {first + turn for turn in question.evidence}
            shares.append(_found(best(index.scores(question.question), count), evidence))
        first += len(turn_texts(question))
    return shares


def _told(question: Question) -> set[int]:
    return set(question.evidence or ())


def _found(turns: Sequence[int], evidence: set[int]) -> float:
    return len(set(turns) & evidence) / len(evidence)


def _share(shares: Sequence[float]) -> str:
    """The mean in percent, with a 95 % interval of a bootstrap over the questions."""
    mean = Bootstrap(np.array([shares]), [str(place) for place in range(len(shares))], seed=0).mean(0)
    return f"{mean.value:.1f} % ({mean.low:.1f} to {mean.high:.1f})"


if __name__ == "__main__":
    main()
