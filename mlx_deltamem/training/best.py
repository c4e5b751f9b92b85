"""Which look at the held-out data found the best adapter."""

import math
from collections.abc import Iterable
from pathlib import Path

from mlx_deltamem.training import processes
from mlx_deltamem.training.health import largest_ratio
from mlx_deltamem.training.metrics import Metrics, Row

# Beside the last checkpoints; a folder of an adapter.
BEST_FOLDER = "best"
LAST, BEST = KEEPS = ("last", "best")
# In the metrics, of a look that was the best so far: `best/` holds the adapter of the last one that has it.
_MARK = "best"
_Score = tuple[float, float, float]


class Best:
    """The best look so far: of those that are healthy the one with the most held-out values right, or answers where
    records name no values; of two alike, the one with the smaller loss. While no look is healthy, the one that is
    nearest to it.

    Args:
        folder: Of the run. What it has gone on from is known from its metrics, which the first process has.
        limit: A look is healthy where no ratio of perplexities is above it; None: all are.
    """

    def __init__(self, folder: Path, limit: float | None = None):
        self._limit = limit
        rows = Metrics(folder).rows() if processes.is_first() and (folder / BEST_FOLDER).is_dir() else []
        # The limit may have been another one then.
        marked = [row for row in rows if row.get(_MARK)]
        self._score = self._best_of(marked[-1:] or rows)

    def note(self, row: Row) -> bool:
        """Note the numbers of a look, as in the metrics, and mark it there where it is the best so far.

        Returns:
            Whether it is, in all processes.
        """
        score = self._best_of([row])
        is_best = processes.is_first() and score is not None and (self._score is None or score > self._score)
        (is_best,) = processes.any_of(is_best)
        if is_best:
            self._score = score
            row[_MARK] = 1.0
        return is_best

    def _best_of(self, rows: Iterable[Row]) -> _Score | None:
        return max(
            (self._score_of(row) for row in rows if math.isfinite(row.get("val_loss") or math.nan)), default=None
        )

    def _score_of(self, row: Row) -> _Score:
        recall = row.get("val_values", row.get("val_answers"))
        # How far it is from being healthy comes first.
        excess = 0.0 if self._limit is None else max(0.0, largest_ratio(row) - self._limit)
        return -excess, (0.0 if recall is None else recall), -row["val_loss"]
