"""Finds the evaluation with the best adapter of a run."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from mlx_deltamem.training import processes
from mlx_deltamem.training.health import largest_ratio
from mlx_deltamem.training.monitor import Metrics, Row

# The best adapter's folder, within the run's folder.
BEST_FOLDER = "best"
# The name in the metrics that marks an evaluation that was the best so far. `best/` holds the adapter of the last one.
_MARK = "best"
_Score = tuple[float, float, float]


def best_step(folder: Path) -> int | None:
    """The step of a run whose adapter is kept as the best one; None if there is no best one.

    Args:
        folder: The run's folder.
    """
    marked = _marked(Metrics(folder).rows()) if (folder / BEST_FOLDER).is_dir() else []
    return cast(int, marked[-1]["iteration"]) if marked else None


def _marked(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.get(_MARK)]


def _since_best(rows: Sequence[Row]) -> int:
    """The number of evaluations after the last best one."""
    marks = [bool(row.get(_MARK)) for row in rows if "val_loss" in row]
    return marks[::-1].index(True) if any(marks) else len(marks)


class Best:
    """The best evaluation on the held-out data so far.

    A healthy adapter is better than an unhealthy one. Of two healthy adapters, the one with more held-out values right
    is better (with more answers right, if the records name no values), then the one with the smaller loss. Of two
    unhealthy adapters, the one with the smaller health ratio is better.

    Args:
        folder: The run's folder. A resumed run continues from its metrics, which only the first process has.
        limit: The largest health ratio of a healthy adapter; None: every adapter is healthy.

    Attributes:
        worse: The number of evaluations since the best one, in all processes.
    """

    def __init__(self, folder: Path, limit: float | None = None):
        self._limit = limit
        rows = Metrics(folder).rows() if processes.is_first() else []
        (self.worse,) = map(int, processes.sum_of(_since_best(rows)))
        if not (folder / BEST_FOLDER).is_dir():
            rows = []
        # The marked row is scored again, since the limit may differ from the earlier one.
        self._score = self._best_of(_marked(rows)[-1:] or rows)

    def note(self, row: Row) -> bool:
        """Compare an evaluation with the best one so far, and mark its row if it is better.

        Returns:
            In all processes, whether it is the best.
        """
        score = self._best_of([row])
        is_best = processes.is_first() and score is not None and (self._score is None or score > self._score)
        (is_best,) = processes.any_of(is_best)
        self.worse = 0 if is_best else self.worse + 1
        if is_best:
            self._score = score
            row[_MARK] = 1.0
        return is_best

    def _best_of(self, rows: Iterable[Row]) -> _Score | None:
        scores = (self._score_of(row) for row in rows)
        return max((score for score in scores if score is not None), default=None)

    def _score_of(self, row: Row) -> _Score | None:
        """The score of an evaluation, larger is better; None for a row without a finite loss."""
        loss = row.get("val_loss")
        if loss is None or not math.isfinite(loss):
            return None
        right = row.get("val_values", row.get("val_answers"))
        excess = 0.0 if self._limit is None else max(0.0, largest_ratio(row) - self._limit)
        return -excess, (0.0 if right is None else right), -loss
