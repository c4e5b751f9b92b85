"""The results of a whole evaluation, and their file `results.json` for programs and for the adapter's model card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_deltamem.evaluation.analysis import Result, Subset
from mlx_deltamem.evaluation.effects import Costs
from mlx_deltamem.evaluation.statistics import Estimate
from mlx_deltamem.evaluation.tasks.health_report import Health, finite, health_document
from mlx_deltamem.evaluation.tasks.registry import HEALTH
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.jsonl import read_json


@dataclass(frozen=True)
class Evaluation:
    """The results of a run.

    Attributes:
        model, adapter: The names of the model and the adapter.
        settings: The settings that the records depend on, by task.
        results: The results of each task.
        costs: The costs, by task and condition.
        health: The effect of the adapter on the model itself; None if it was not measured.
    """

    model: str
    adapter: str
    settings: Mapping[str, object]
    results: Sequence[Result]
    costs: Mapping[tuple[str, str], Costs]
    health: Health | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return (*(result.task.name for result in self.results), *((HEALTH,) if self.health is not None else ()))

    def costs_of(self, task: str) -> dict[str, Costs]:
        """The costs of a task, by condition."""
        return {condition: costs for (name, condition), costs in self.costs.items() if name == task}


def write_results(evaluation: Evaluation, path: Path) -> list[str]:
    """Write `results.json`. Model cards show its entry `results`.

    The results that an old file has of other tasks stay in it. The records of one folder have one adapter and one
    backbone (`settings`).

    Returns:
        The names of these other tasks.

    Raises:
        OSError: The file cannot be written. An old file is unchanged.
    """
    document: dict[str, object] = {
        "model": evaluation.model,
        "adapter": evaluation.adapter,
        "settings": evaluation.settings,
        "results": [row for result in evaluation.results for row in _mean_rows(result)],
        "differences": [row for result in evaluation.results for row in _difference_rows(result)],
        "costs": [
            {"task": task, "condition": condition, **_costs_by_name(costs)}
            for (task, condition), costs in evaluation.costs.items()
        ],
        "evidence": [
            {"task": result.task.name, "condition": condition, "share": share}
            for result in evaluation.results
            for condition, share in result.evidence.items()
        ],
        "published": [
            {"task": result.task.name, **asdict(score)}
            for result in evaluation.results
            for score in result.task.published
        ],
    }
    if evaluation.health is not None:
        document[HEALTH] = health_document(evaluation.health)
    earlier = _keep_earlier(document, evaluation, _old(path))
    with new_file(path) as temporary:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return earlier


def _keep_earlier(document: dict[str, object], evaluation: Evaluation, old: Mapping[str, object]) -> list[str]:
    """Add what an old file has of other tasks; returns their names."""
    names = [_task_of(row) for row in _rows(old, "results")] + [HEALTH] * (HEALTH in old)
    earlier = [name for name in dict.fromkeys(names) if name and name not in evaluation.tasks]
    for name, rows in document.items():
        if isinstance(rows, list):
            rows += [row for row in _rows(old, name) if _task_of(row) not in (None, *evaluation.tasks)]
    if HEALTH in earlier:
        document[HEALTH] = old[HEALTH]
    settings = old.get("settings")
    if isinstance(settings, dict):
        document["settings"] = settings | dict(evaluation.settings)
    return earlier


def _old(path: Path) -> Mapping[str, object]:
    """The content of an old file; empty if there is none, or if it is damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(document: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    rows = document.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _task_of(row: Mapping[str, object]) -> str | None:
    """The task of a row, whose name may go on with a subset of its questions."""
    name = row.get("task")
    return name.split(", ")[0] if isinstance(name, str) else None


def _costs_by_name(costs: Costs) -> dict[str, float | None]:
    """The costs by name; None for those that were not measured, and where a memory has overflowed."""
    return {name: None if number is None else finite(number) for name, number in asdict(costs).items()}


def _mean_rows(result: Result) -> Iterator[dict[str, object]]:
    """The means of a task: all metrics of all questions, and the main metric of each subset."""
    for task, subset in _named_subsets(result):
        for (condition, metric), estimate in subset.means.items():
            if subset is result.whole or metric == result.metrics[0]:
                yield {"task": task, "condition": condition, "metric": metric, **_numbers(estimate)}


def _difference_rows(result: Result) -> Iterator[dict[str, object]]:
    for task, subset in _named_subsets(result):
        for conditions, estimate in subset.differences.items():
            yield {
                "task": task,
                "conditions": list(conditions),
                "metric": result.metrics[0],
                **_numbers(estimate),
            }


def _named_subsets(result: Result) -> Iterator[tuple[str, Subset]]:
    """All questions, each category and each value of a label, under the name of the task and of the subset."""
    name = result.task.name
    yield name, result.whole
    for subset in result.categories:
        yield f"{name}, {subset.name}", subset
    for label, subsets in result.breakdowns.items():
        for subset in subsets:
            yield f"{name}, {label} {subset.name}", subset


def _numbers(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "interval": [estimate.low, estimate.high], "questions": estimate.questions}
