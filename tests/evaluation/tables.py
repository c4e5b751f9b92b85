"""Hand-written tables of replies with their scores, and helpers for the tests of tasks."""

import json
from fractions import Fraction
from functools import cache
from pathlib import Path

from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone, Task
from tests.conftest import backbone

_TABLES = Path(__file__).parent / "pairs"


def table(name: str) -> list[dict]:
    """The rows of a table. The field `why` of a row says how its score was worked out."""
    return [json.loads(line) for line in (_TABLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def exactly(share: str) -> float:
    return float(Fraction(share))


@cache
def tiny_backbone(window: int | None = None) -> Backbone:
    return Backbone(load_tokenizer(Path(backbone())), window)


def asked(task: Task, window: int | None = None) -> list[Question]:
    return list(task.questions(tiny_backbone(window)))


def oracle_and_mute(task: Task, questions: list[Question]) -> None:
    """A gold answer has the full score, and an empty reply scores 0."""
    for question in questions:
        for gold in question.golds:
            assert set(task.score(question, gold).values()) == {1.0}, (question.id, gold)
        assert set(task.score(question, "").values()) == {0.0}, question.id


def check_questions(questions: list[Question]) -> None:
    """Check the rules for the questions of every task."""
    assert len({question.id for question in questions}) == len(questions)
    groups = [question.group for question in questions]
    assert [group for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group] == list(dict.fromkeys(groups))
    first = {question.group: question for question in reversed(questions)}
    for question in questions:
        assert question.history == first[question.group].history
        assert question.context == first[question.group].context
        assert question.golds and question.max_tokens > 0 and question.told
        assert question.messages(with_history=True)[-1]["role"] == "user"
