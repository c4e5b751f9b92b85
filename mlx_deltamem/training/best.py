"""Which look at the held-out data found the best adapter."""

import math
from collections.abc import Iterable
from pathlib import Path

from mlx_deltamem.training import processes
from mlx_deltamem.training.metrics import Metrics, Row

# Beside the last checkpoints; a folder of an adapter.
BEST_FOLDER = "best"
LAST, BEST = KEEPS = ("last", "best")
_Score = tuple[float, float]


class Best:
    """The best look so far: the one with the most held-out values right, or answers where records name no values; of
    two alike, the one with the smaller loss.

    Args:
        folder: Of the run. What it has gone on from is known from its metrics, which the first process has.
    """

    def __init__(self, folder: Path):
        rows = Metrics(folder).rows() if processes.is_first() and (folder / BEST_FOLDER).is_dir() else []
        self._score = _best_of(rows)

    def note(self, row: Row) -> bool:
        """Note the numbers of a look, as in the metrics; returns whether it is the best so far, in all processes."""
        score = _best_of([row])
        is_best = processes.is_first() and score is not None and (self._score is None or score > self._score)
        (is_best,) = processes.any_of(is_best)
        if is_best:
            self._score = score
        return is_best


def _best_of(rows: Iterable[Row]) -> _Score | None:
    return max((_score(row) for row in rows if math.isfinite(row.get("val_loss") or math.nan)), default=None)


def _score(row: Row) -> _Score:
    recall = row.get("val_values", row.get("val_answers"))
    return (0.0 if recall is None else recall), -row["val_loss"]
