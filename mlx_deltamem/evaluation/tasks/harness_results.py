"""The results of a task of lm-evaluation-harness: read from the harness's output, and made into records of a run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np

from mlx_deltamem.evaluation.records import Record

_NUMBER = (bool, int, float, np.number)


class HarnessOutput(TypedDict):
    """The part of the return value of `lm_eval.simple_evaluate` that is read.

    Keys:
        results: By task, the aggregated scores by "METRIC,FILTER", among other entries.
        samples: By task, a row for each question and each filter. A filter is a way to find the answer in a reply.
    """

    results: dict[str, dict[str, object]]
    samples: dict[str, list[dict[str, object]]]


@dataclass(frozen=True)
class HarnessSample:
    """A question of a task, with its scores.

    Attributes:
        task: The task. For a question of a group such as MMLU, the member of the group.
        id: The place of the question in the task.
        gold: The right answer, in the harness's form.
        replies: The replies of the model. If endings are compared, the likelihood of each.
        scores: By metric, from 0 to 1. Only metrics whose mean over the questions is the harness's own score.
    """

    task: str
    id: int
    gold: str
    replies: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class HarnessResult:
    """The result of a task under a condition.

    Attributes:
        task: The name of the task or group, as it was asked for.
        condition: `base` or `full`.
        scores: By metric, the harness's own score of the task, or of the whole group.
        questions: The number of questions.
        samples: All questions.
    """

    task: str
    condition: str
    scores: Mapping[str, float]
    questions: int
    samples: tuple[HarnessSample, ...]


def read_result(name: str, harness_name: str, condition: str, output: HarnessOutput) -> HarnessResult:
    """Read the result of a task from the harness's output.

    Args:
        name: The name of the task, as it was asked for.
        harness_name: The harness's name of the task.
        condition: The condition that the task was run under.
        output: The output of the harness.
    """
    results = output["results"]
    aggregates = dict(results.get(harness_name, {}))
    if not any(isinstance(value, _NUMBER) for value in aggregates.values()):
        # A tag of several tasks, which has no score. The scores are those of its tasks.
        aggregates = {f"{task} {key}": value for task, each in results.items() for key, value in each.items()}
    scores = {}
    for key, value in aggregates.items():
        # Scores have keys such as "exact_match,strict-match" and errors "exact_match_stderr,strict-match".
        metric, comma, answer_filter = key.partition(",")
        if comma and isinstance(value, _NUMBER) and not metric.endswith("_stderr"):
            scores[_metric_name(metric, answer_filter)] = float(value)
    samples = tuple(
        sample for task, rows in output["samples"].items() for sample in _samples(task, rows, results.get(task, {}))
    )
    return HarnessResult(name, condition, scores, len(samples), samples)


def harness_records(result: HarnessResult, first_metrics: Sequence[str]) -> list[Record]:
    """The records of a task: one for each question, with the metrics that all questions share.

    Args:
        result: The result of the task.
        first_metrics: Metrics to put first, such as the published one.

    Raises:
        ValueError: No metric is one of single questions, for example in a task that measures perplexity.
    """
    # Members of a group may have metrics that others lack.
    shared = set.intersection(*(set(sample.scores) for sample in result.samples)) if result.samples else set()
    if not shared:
        raise ValueError(
            f"{result.task} has no score for each of its {result.questions} questions (in all: {result.scores}), but "
            "intervals need one; leave the task out"
        )
    order = list(result.samples[0].scores)
    metrics = sorted(shared, key=lambda metric: (metric not in first_metrics, order.index(metric)))
    return [
        {
            "task": result.task,
            "condition": result.condition,
            "seed": 0,
            "id": f"{sample.task}/{sample.id}",
            "group": f"{sample.task}/{sample.id}",
            "category": sample.task,
            "labels": {},
            "golds": [sample.gold],
            "reply": "\n".join(sample.replies),
            "ending": None,
            "scores": {metric: sample.scores[metric] for metric in metrics},
            "questions": len(result.samples),
        }
        for sample in result.samples
    ]


@dataclass(frozen=True)
class _Row:
    """A row of the harness: a question with one filter.

    Attributes:
        question: The place of the question in the task.
        answer_filter: The name of the filter.
        target: The right answer.
        replies: The replies.
        metrics: The values by metric.
    """

    question: int
    answer_filter: str
    target: str
    replies: tuple[str, ...]
    metrics: Mapping[str, object]

    @classmethod
    def of(cls, row: Mapping[str, object]) -> "_Row":
        replies = cast(Sequence[Sequence[object]], row["resps"])
        return cls(
            question=cast(int, row["doc_id"]),
            answer_filter=cast(str, row["filter"]),
            target=str(row["target"]),
            replies=tuple(str(reply) for several in replies for reply in several),
            metrics={metric: row[metric] for metric in cast(Sequence[str], row["metrics"])},
        )


def _samples(
    task: str, rows: Sequence[Mapping[str, object]], aggregates: Mapping[str, object]
) -> Iterator[HarnessSample]:
    """The questions of a task, from the rows of the harness and its aggregated scores."""
    by_question: dict[int, list[_Row]] = {}
    values: dict[tuple[str, str], list[object]] = {}
    for row in map(_Row.of, rows):
        by_question.setdefault(row.question, []).append(row)
        for metric, value in row.metrics.items():
            values.setdefault((metric, row.answer_filter), []).append(value)
    kept = {key for key, found in values.items() if _is_mean(found, aggregates.get(",".join(key)))}
    for number, same in sorted(by_question.items()):
        scores = {
            _metric_name(metric, row.answer_filter): float(cast(float, value))
            for row in same
            for metric, value in row.metrics.items()
            if (metric, row.answer_filter) in kept
        }
        yield HarnessSample(task, number, same[0].target, same[0].replies, scores)


def _metric_name(metric: str, answer_filter: str) -> str:
    """The name of a metric, with the name of its filter if it has one."""
    return metric if answer_filter == "none" else f"{metric},{answer_filter}"


def _is_mean(values: Sequence[object], aggregate: object) -> bool:
    """Whether the values are numbers from 0 to 1 and the aggregate is their mean, unlike a perplexity or BLEU."""
    numbers = [float(value) for value in values if isinstance(value, _NUMBER) and 0 <= float(value) <= 1]
    if len(numbers) < len(values) or not isinstance(aggregate, _NUMBER):
        return False
    return math.isclose(float(np.mean(numbers)), float(aggregate), abs_tol=1e-6)
