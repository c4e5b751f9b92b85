"""How often BM25 finds the turn with the answer, and the bytes that text, index and memory take.

The questions are those of `--recall-natural` that have an answer in their chat. They are asked of their own chat, and
of the turns of all chats together. Run: python -m tools.measure.retrieval

With `--locomo locomo10.json` the questions are those of LoCoMo that are not adversarial. Each is asked of its own
conversation, with each turn by itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.evaluation.baselines.retrieval import Bm25Index, best
from mlx_deltamem.evaluation.baselines.turns import text_bytes, turn_texts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.statistics import Bootstrap
from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.evaluation.tasks.locomo import Locomo
from mlx_deltamem.evaluation.tasks.natural import natural_questions

_TURNS = (1, 2, 4, 8)


@command
def main() -> None:
    """Print the table."""
    parser = Parser(prog="python -m tools.measure.retrieval", description=__doc__)
    parser.add_argument(
        "--locomo", type=Path, metavar="locomo10.json", help="Ask the questions of LoCoMo in this file."
    )
    args = parser.parse_args()
    if args.locomo is None:
        _natural()
    else:
        _locomo(args.locomo)


def _locomo(path: Path) -> None:
    """Print the shares of the evidence that BM25 finds in LoCoMo, by what a public audit says about the answers."""
    task = Locomo(data=path, mode="replay", message="turn")
    # These histories are not cut to a window, and nothing is counted in tokens.
    questions = task.questions(Backbone(cast(TokenizerWrapper, None), None))
    asked = [each for each in questions if each.category != "adversarial" and each.evidence]
    groups = {each.group: each for each in asked}
    indices = {name: Bm25Index(turn_texts(each)) for name, each in groups.items()}
    kinds = {"all": asked, **{f"answer key {key}": _with_key(asked, key) for key in ("sound", "wrong")}}
    turns = [len(turn_texts(each)) for each in groups.values()]
    print(
        f"{len(asked)} questions with evidence about {len(groups)} conversations of {min(turns)} to {max(turns)} turns"
    )
    for count in _TURNS:
        shares = {id(each): _found(best(indices[each.group].scores(each.query), count), _told(each)) for each in asked}
        found = (f"{kind} {share([shares[id(each)] for each in chosen])}" for kind, chosen in kinds.items() if chosen)
        print(f"evidence among {count} turns: {', '.join(found)}")


def _with_key(asked: Sequence[Question], key: str) -> list[Question]:
    return [each for each in asked if each.labels.get("answer key") == key]


def _natural() -> None:
    questions = list(natural_questions(()))
    asked = [question for question in questions if question.evidence]
    texts = [text for question in questions for text in turn_texts(question)]
    index = Bm25Index(texts)
    print(f"{len(asked)} questions with an answer in their chat, of {len(questions)}; {len(texts)} turns in all chats")
    for count in _TURNS:
        own = [_found(best(Bm25Index(turn_texts(each)).scores(each.question), count), _told(each)) for each in asked]
        together = _together(questions, index, count)
        print(f"the answer is among {count} turns: own chat {share(own)}, all chats {share(together)}")
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


def share(shares: Sequence[float]) -> str:
    """The mean in percent, with a 95 % interval of a bootstrap over the questions."""
    mean = Bootstrap(np.array([shares]), [str(place) for place in range(len(shares))], seed=0).mean(0)
    return f"{mean.value:.1f} % ({mean.low:.1f} to {mean.high:.1f})"


if __name__ == "__main__":
    main()
