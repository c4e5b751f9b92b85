"""What the records of a task say: means and differences with intervals, by category and by label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_deltamem.evaluation.records import Row
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate
from mlx_deltamem.evaluation.task import Described

# What is compared, where both were asked: the first ought to be better.
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
# Of a curve: each value of a label is a point of its own, or else so many points have equally many questions.
_MOST_POINTS = 8


@dataclass(frozen=True)
class Subset:
    """The results of some questions.

    Attributes:
        name: Which ones; "" for all.
        means: By condition and metric.
        differences: Of the main metric, by two conditions.
    """

    name: str
    means: Mapping[tuple[str, str], Estimate]
    differences: Mapping[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Curve:
    """The main score against a label.

    Attributes:
        label: Which one.
        places: The mean of the label at each point.
        conditions: For each condition the score at each point.
    """

    label: str
    places: tuple[float, ...]
    conditions: Mapping[str, tuple[Estimate, ...]]


@dataclass(frozen=True)
class Result:
    """The results of a task.

    Attributes:
        task: The task.
        conditions: Those that were asked, in order.
        metrics: The names of the scores, the main one first.
        whole: All questions but those that the task leaves out of its mean.
        categories: By category, where there are several.
        breakdowns: By label, and for each of its values.
        curves: Against labels that are numbers.
        by_seed: The mean of the main score for each seed, by condition; of all of `whole`.
        cut: By condition, the share of replies that are as long as they may be.
        distinct_replies: By two conditions that are compared, the share of questions whose replies differ.
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


class Table:
    """The scores of a task as an array.

    Args:
        rows: Its records, all questions under all conditions with all seeds.
        conditions: The conditions.

    Attributes:
        questions: A record of each question.
        scores: `[C, metrics, Q]`, means over the seeds.
    """

    def __init__(self, rows: Sequence[Row], conditions: Sequence[str], seed: int):
        self.conditions = tuple(conditions)
        self.questions = list({row["id"]: row for row in reversed(rows)}.values())[::-1]
        self.metrics = tuple(self.questions[0]["scores"])
        self._seed = seed
        place = {row["id"]: index for index, row in enumerate(self.questions)}
        shape = len(conditions), len(self.metrics), len(place)
        sums, counts = np.zeros(shape), np.zeros(shape)
        for row in rows:
            at = self.conditions.index(row["condition"]), slice(None), place[row["id"]]
            sums[at] += list(row["scores"].values())
            counts[at] += 1
        self.scores = sums / counts

    def subset(self, name: str, chosen: Callable[[Row], bool]) -> Subset:
        """The results of the questions that are chosen."""
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

    def bootstrap(self, chosen: Callable[[Row], bool], metric: int = 0) -> Bootstrap:
        """Resamples of the questions that are chosen."""
        kept = [index for index, row in enumerate(self.questions) if chosen(row)]
        groups = [self.questions[index]["group"] for index in kept]
        return Bootstrap(self.scores[:, metric, kept], groups, self._seed)

    def compared(self) -> list[tuple[str, str]]:
        """The pairs of conditions to compare."""
        return [pair for pair in COMPARED if set(pair) <= set(self.conditions)]

    def values(self, label: str) -> list[float | str]:
        """The values of a label, in order."""
        return sorted({row["labels"][label] for row in self.questions if label in row["labels"]})


def analyse(task: Described, rows: Sequence[Row], conditions: Sequence[str], seed: int) -> Result:
    """The results of a task from its records.

    Args:
        task: The task.
        rows: Its records, of all these conditions.
        conditions: The conditions, in order.
        seed: Of the bootstrap.
    """
    table = Table(rows, conditions, seed)
    categories = list(dict.fromkeys(row["category"] for row in table.questions))
    counted = [row for row in rows if row["category"] not in task.outside_mean]
    # A run of nothing else has no mean otherwise.
    outside = task.outside_mean if counted else ()
    return Result(
        task=task,
        conditions=table.conditions,
        metrics=table.metrics,
        whole=table.subset("", lambda row: row["category"] not in outside),
        categories=tuple(_of_category(table, name) for name in categories) if len(categories) > 1 else (),
        breakdowns={label: subsets for label in task.breakdowns if (subsets := _by_label(table, label))},
        curves=tuple(curve for label in task.curves if (curve := _curve(table, label)) is not None),
        by_seed=_by_seed(counted or rows, table),
        cut=_cut(rows, table.conditions),
        distinct_replies=_distinct(rows, table),
    )


def _of_category(table: Table, name: str) -> Subset:
    return table.subset(name, lambda row: row["category"] == name)


def _by_label(table: Table, label: str) -> tuple[Subset, ...]:
    values = table.values(label)
    if len(values) < 2:
        return ()
    return tuple(_of_value(table, label, value) for value in values)


def _of_value(table: Table, label: str, value: float | str) -> Subset:
    return table.subset(str(value), lambda row: row["labels"].get(label) == value)


def _curve(table: Table, label: str) -> Curve | None:
    """The curve of a label; None where it has one value only."""
    numbers = sorted(row["labels"][label] for row in table.questions if label in row["labels"])
    borders = sorted(set(numbers))
    if len(borders) < 2:
        return None
    if len(borders) > _MOST_POINTS:
        borders = sorted({numbers[len(numbers) * point // _MOST_POINTS] for point in range(_MOST_POINTS)})
    bins = list(zip(borders, [*borders[1:], np.inf], strict=True))
    points = [table.bootstrap(lambda row, span=span: _within(row, label, span)) for span in bins]
    places = [np.mean([number for number in numbers if low <= number < high]) for low, high in bins]
    conditions = {name: tuple(each.mean(index) for each in points) for index, name in enumerate(table.conditions)}
    return Curve(label, tuple(map(float, places)), conditions)


def _within(row: Row, label: str, span: tuple[float, float]) -> bool:
    return label in row["labels"] and span[0] <= row["labels"][label] < span[1]


def _by_seed(rows: Sequence[Row], table: Table) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, list[float]]] = {condition: {} for condition in table.conditions}
    for row in rows:
        found[row["condition"]].setdefault(row["seed"], []).append(row["scores"][table.metrics[0]])
    return {
        condition: {seed: 100 * float(np.mean(scores)) for seed, scores in seeds.items()}
        for condition, seeds in found.items()
    }


def _cut(rows: Sequence[Row], conditions: Sequence[str]) -> dict[str, float]:
    known = {
        condition: [row["ending"] for row in rows if row["condition"] == condition and row["ending"] is not None]
        for condition in conditions
    }
    return {condition: ends.count("length") / len(ends) for condition, ends in known.items() if ends}


def _distinct(rows: Sequence[Row], table: Table) -> dict[tuple[str, str], float]:
    replies = {(row["condition"], row["seed"], row["id"]): row["reply"] for row in rows}
    asked = {(row["seed"], row["id"]) for row in rows}
    return {
        (one, other): sum(replies[one, *each] != replies[other, *each] for each in asked) / len(asked)
        for one, other in table.compared()
    }
