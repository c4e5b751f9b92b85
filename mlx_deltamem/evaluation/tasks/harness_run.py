"""Tasks of lm-evaluation-harness within a run: their questions become records like any other's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.conditions import Condition
from mlx_deltamem.evaluation.records import JsonLines, Row
from mlx_deltamem.evaluation.task import Published
from mlx_deltamem.evaluation.tasks.harness import (
    HARNESS_CONDITIONS,
    HarnessOptions,
    HarnessResult,
    harness_differences,
    run_harness_task,
)
from mlx_deltamem.evaluation.tasks.published import HARNESS
from mlx_deltamem.show.progress import Counted


@dataclass(frozen=True)
class HarnessTask:
    """What a report tells of a task of the harness; see `Described`."""

    name: str
    breakdowns: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[tuple[str, ...]] = ()
    outside_mean: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        return f"{self.name} (lm-evaluation-harness)"

    @property
    def published(self) -> tuple[Published, ...]:
        return HARNESS.get(self.name, ())

    @property
    def differences(self) -> tuple[str, ...]:
        return harness_differences(self.name)


class HarnessRun:
    """Tasks of the harness in a run's folder.

    The harness runs a task as a whole: what a killed run had not ended, of a task and a condition, is run again from
    its start.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        options: How tasks are run.
        records: The run's records.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, options: HarnessOptions, records: JsonLines):
        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._records = records

    def ask(self, task: str, conditions: Iterable[Condition], progress: Counted) -> None:
        """Run a task under those of the conditions that it can be run under.

        Raises:
            FileNotFoundError: Its data cannot be had.
            ValueError: lm-eval is not installed, there is no such task, it may not run, or its questions have no
                scores.
        """
        for condition in asked_conditions(conditions):
            progress(f"{task}, {condition}", 0)
            present = {row["id"] for row in self._of(task, condition)}
            if condition not in self.complete_conditions(task):
                result = run_harness_task(self._model, self._tokenizer, task, condition, self._options)
                rows = _rows(result, HarnessTask(task))
                self._records.add(row for row in rows if row["id"] not in present)
            progress(f"{task}, {condition}", 1)

    def complete_conditions(self, task: str) -> list[str]:
        """The conditions under which a task has been run to its end."""
        rows = {condition: self._of(task, condition) for condition in HARNESS_CONDITIONS}
        return [condition for condition, found in rows.items() if found and len(found) == found[0]["questions"]]

    def rows(self, task: str, conditions: Sequence[str]) -> list[Row]:
        """The records of a task under some conditions."""
        return [row for condition in conditions for row in self._of(task, condition)]

    def _of(self, task: str, condition: str) -> list[Row]:
        return [row for row in self._records.rows if (row["task"], row["condition"]) == (task, condition)]


def asked_conditions(conditions: Iterable[Condition]) -> list[str]:
    """The names of those conditions that tasks of the harness can be run under."""
    return [condition.name for condition in conditions if condition.name in HARNESS_CONDITIONS]


def _rows(result: HarnessResult, task: HarnessTask) -> list[Row]:
    """The records of a task.

    Raises:
        ValueError: It has no score of single questions, as tasks of perplexity.
    """
    first = [each.metric for each in task.published]
    # Members of a group may have metrics that others lack.
    shared = set.intersection(*(set(sample.scores) for sample in result.samples)) if result.samples else set()
    if not shared:
        raise ValueError(
            f"{result.task} has no score for each of its {result.questions} questions (in all: {result.scores}), which "
            "intervals are computed from; leave it out"
        )
    metrics = sorted(shared, key=lambda metric: (metric not in first, list(result.samples[0].scores).index(metric)))
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
