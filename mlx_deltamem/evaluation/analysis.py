"""The results of a task from its records: means and differences with intervals, by category and by label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mlx_deltamem.evaluation.baselines.baseline import find_baseline
from mlx_deltamem.evaluation.records import Record
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate
from mlx_deltamem.evaluation.task import Described

# The pairs of conditions that are compared if both were asked. The first one is expected to score higher.
COMPARED = (
    ("full", "base"),
    ("replay", "base"),
    ("state", "none"),
    ("state", "zeroed"),
    ("state", "shuffled"),
    ("shuffled", "none"),
    ("zeroed", "none"),
    ("state", "base"),
    ("chat", "none"),
    ("chat", "state"),
    ("chat", "base"),
)
# A curve has one point for each value of its label. If there are more values, it has this many points, with about the
# same number of questions each.
_MOST_POINTS = 8


def compared_with(baseline: str) -> tuple[tuple[str, str], ...]:
    """The pairs of conditions in which a baseline is compared.

    The memory alone is compared with it, and the memory beside its text with the text alone and with another memory.

    Args:
        baseline: The name of the baseline, for example "bm25-4".
    """
    both = f"{baseline}+state"
    pairs = (both, baseline), (both, f"{baseline}+shuffled"), (both, "state")
    return (("state", baseline), ("chat", baseline), (baseline, "none"), *pairs)


@dataclass(frozen=True)
class Subset:
    """The results of a subset of the questions.

    Attributes:
        name: The name of the subset; "" for all questions.
        means: The mean scores, by condition and metric.
        differences: The differences of the main score, by the pair of conditions.
    """

    name: str
    means: Mapping[tuple[str, str], Estimate]
    differences: Mapping[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Curve:
    """The main score as a function of a label.

    Attributes:
        label: The name of the label.
        places: For each point, the mean of the label.
        conditions: For each condition, the score at each point.
    """

    label: str
    places: tuple[float, ...]
    conditions: Mapping[str, tuple[Estimate, ...]]


@dataclass(frozen=True)
class Result:
    """The results of a task.

    Attributes:
        task: The task.
        conditions: The conditions that were asked, in order.
        metrics: The names of the scores, the main one first.
        whole: The results of all questions, except the categories that the task leaves out of its mean.
        categories: The results by category; empty if there is only one category.
        breakdowns: The results by label, for each of its values.
        curves: The main score as a function of the labels that are numbers.
        by_seed: By condition, the mean of the main score in percent for each seed, over the questions of `whole`.
        cut: By condition, the share of replies that reached the longest length.
        distinct_replies: By pair of compared conditions, the share of questions with different replies.
        evidence: By condition, the mean share of the evidence that was in the text, from 0 to 1; only for conditions
            and questions where it is known.
    """

    task: Described
    conditions: tuple[str, ...]
    metrics: tuple[str, ...]
    whole: Subset
    categories: tuple[Subset, ...]
    breakdowns: Mapping[str, tuple[Subset, ...]]
    curves: tuple[Curve, ...]
    by_seed: Mapping[str, Mapping[int, float]]
    cut: Mapping[str, float]
    distinct_replies: Mapping[tuple[str, str], float]
    evidence: Mapping[str, float] = field(default_factory=dict)


class ScoreTable:
    """The scores of a task as an array.

    Args:
        rows: The records of the task: all questions under all conditions with all seeds.
        conditions: The conditions.
        seed: The seed of the bootstrap.

    Attributes:
        questions: One record of each question.
        metrics: The names of the scores, the main one first.
        scores: `[C, M, Q]`, for C conditions, M metrics and Q questions; means over the seeds.
    """

    def __init__(self, rows: Sequence[Record], conditions: Sequence[str], seed: int):
        self.conditions = tuple(conditions)
        self.questions = list({row["id"]: row for row in reversed(rows)}.values())[::-1]
        # Under some conditions, a metric of a harness task may have no score for single questions.
        shared = set.intersection(*(set(row["scores"]) for row in rows))
        self.metrics = tuple(metric for metric in self.questions[0]["scores"] if metric in shared)
        self._seed = seed
        place = {row["id"]: index for index, row in enumerate(self.questions)}
        shape = len(conditions), len(self.metrics), len(place)
        sums, counts = np.zeros(shape), np.zeros(shape)
        for row in rows:
            at = self.conditions.index(row["condition"]), slice(None), place[row["id"]]
            sums[at] += [row["scores"][metric] for metric in self.metrics]
            counts[at] += 1
        self.scores = sums / counts

    def subset(self, name: str, chosen: Callable[[Record], bool]) -> Subset:
        """The results of the questions that `chosen` accepts."""
        means: dict[tuple[str, str], Estimate] = {}
        differences: dict[tuple[str, str], Estimate] = {}
        for metric, metric_name in enumerate(self.metrics):
            bootstrap = self.bootstrap(chosen, metric)
            for index, condition in enumerate(self.conditions):
                means[condition, metric_name] = bootstrap.mean(index)
            if metric == 0:
                differences = {
                    pair: bootstrap.difference(*map(self.conditions.index, pair)) for pair in self.compared()
                }
        return Subset(name, means, differences)

    def bootstrap(self, chosen: Callable[[Record], bool], metric: int = 0) -> Bootstrap:
        """The bootstrap of a metric over the questions that `chosen` accepts."""
        kept = [index for index, row in enumerate(self.questions) if chosen(row)]
        groups = [self.questions[index]["group"] for index in kept]
        return Bootstrap(self.scores[:, metric, kept], groups, self._seed)

    def compared(self) -> list[tuple[str, str]]:
        """The pairs of `COMPARED` that were asked, and those of the baselines."""
        baselines = [name for name in self.conditions if find_baseline(name) is not None]
        pairs = [*COMPARED, *(pair for name in baselines for pair in compared_with(name))]
        return [pair for pair in pairs if set(pair) <= set(self.conditions)]

    def values(self, label: str) -> list[float | str]:
        """The values of a label, ascending."""
        return sorted({row["labels"][label] for row in self.questions if label in row["labels"]}, key=_order)


def analyse(task: Described, rows: Sequence[Record], conditions: Sequence[str], seed: int) -> Result:
    """Compute the results of a task from its records.

    Args:
        task: The task.
        rows: The records of the task under the conditions; at least one.
        conditions: The conditions, in order.
        seed: The seed of the bootstrap.
    """
    table = ScoreTable(rows, conditions, seed)
    categories = list(dict.fromkeys(row["category"] for row in table.questions))
    within = [row for row in rows if row["category"] not in task.outside_mean]
    # If only these categories were asked, they are the mean.
    outside = task.outside_mean if within else ()
    counted = within or rows
    return Result(
        task=task,
        conditions=table.conditions,
        metrics=table.metrics,
        whole=table.subset("", lambda row: row["category"] not in outside),
        categories=tuple(_of_category(table, name) for name in categories) if len(categories) > 1 else (),
        breakdowns={label: subsets for label in task.breakdowns if (subsets := _by_label(table, label))},
        curves=tuple(curve for label in task.curves if (curve := _curve(table, label)) is not None),
        by_seed=_by_seed(counted, table),
        cut=_cut(counted, table.conditions),
        distinct_replies=_distinct(counted, table),
        evidence=_evidence(counted, table.conditions),
    )


def _of_category(table: ScoreTable, name: str) -> Subset:
    return table.subset(name, lambda row: row["category"] == name)


def _by_label(table: ScoreTable, label: str) -> tuple[Subset, ...]:
    values = table.values(label)
    if len(values) < 2:
        return ()
    return tuple(_of_value(table, label, value) for value in values)


def _of_value(table: ScoreTable, label: str, value: float | str) -> Subset:
    return table.subset(str(value), lambda row: row["labels"].get(label) == value)


def _curve(table: ScoreTable, label: str) -> Curve | None:
    """The curve of a label; None if the label has only one value."""
    numbers = sorted(float(row["labels"][label]) for row in table.questions if label in row["labels"])
    borders = sorted(set(numbers))
    if len(borders) < 2:
        return None
    if len(borders) > _MOST_POINTS:
        borders = sorted({numbers[len(numbers) * point // _MOST_POINTS] for point in range(_MOST_POINTS)})
    bins = list(zip(borders, [*borders[1:], np.inf], strict=True))
    points = [table.bootstrap(partial(_within, label, span)) for span in bins]
    places = [np.mean([number for number in numbers if low <= number < high]) for low, high in bins]
    conditions = {name: tuple(each.mean(index) for each in points) for index, name in enumerate(table.conditions)}
    return Curve(label, tuple(map(float, places)), conditions)


def _within(label: str, span: tuple[float, float], row: Record) -> bool:
    return label in row["labels"] and span[0] <= float(row["labels"][label]) < span[1]


def _order(value: float | str) -> tuple[float, str]:
    return (0.0, value) if isinstance(value, str) else (value, "")


def _by_seed(rows: Sequence[Record], table: ScoreTable) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, list[float]]] = {condition: {} for condition in table.conditions}
    for row in rows:
        found[row["condition"]].setdefault(row["seed"], []).append(row["scores"][table.metrics[0]])
    return {
        condition: {seed: 100 * float(np.mean(scores)) for seed, scores in seeds.items()}
        for condition, seeds in found.items()
    }


def _cut(rows: Sequence[Record], conditions: Sequence[str]) -> dict[str, float]:
    known = {
        condition: [row["ending"] for row in rows if row["condition"] == condition and row["ending"] is not None]
        for condition in conditions
    }
    return {condition: ends.count("length") / len(ends) for condition, ends in known.items() if ends}


def _evidence(rows: Sequence[Record], conditions: Sequence[str]) -> dict[str, float]:
    known: dict[str, list[float]] = {condition: [] for condition in conditions}
    for row in rows:
        if (share := row.get("evidence")) is not None:
            known[row["condition"]].append(share)
    return {condition: float(np.mean(shares)) for condition, shares in known.items() if shares}


def _distinct(rows: Sequence[Record], table: ScoreTable) -> dict[tuple[str, str], float]:
    replies = {(row["condition"], row["seed"], row["id"]): row["reply"] for row in rows}
    asked = {(row["seed"], row["id"]) for row in rows}
    return {
        (one, other): sum(replies[one, *each] != replies[other, *each] for each in asked) / len(asked)
        for one, other in table.compared()
    }
