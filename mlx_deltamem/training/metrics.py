"""The file `metrics.jsonl` of a run: a line for each report, and for each look at the held-out data."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.core.adapter import METRICS_FILE
from mlx_deltamem.files.atomic import new_file

Row = dict[str, float | None]


@dataclass(frozen=True)
class Metrics:
    """The numbers of a run, by step.

    Attributes:
        folder: The run's folder.
    """

    folder: Path

    @property
    def _path(self) -> Path:
        return self.folder / METRICS_FILE

    def add(self, row: Row) -> None:
        """Note numbers after a step, `iteration`; those that are not finite as null, since JSON has no word for them.

        Raises:
            OSError: They cannot be written.
        """
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """What was noted; a line that a killed process did not finish is left out."""
        if not self._path.is_file():
            return []
        rows = []
        for line in self._path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
        return rows

    def go_back(self, iteration: int) -> None:
        """Forget what was noted after the step that the run goes on from, and the look that is now taken once more."""
        if not self._path.is_file():
            return
        kept = [row for row in self.rows() if row["iteration"] < iteration + ("train_loss" in row)]
        with new_file(self._path) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
