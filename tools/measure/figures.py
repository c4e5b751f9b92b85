"""Figures with targets: their verdicts, a table, a JSON file, and the comparison with an earlier JSON file."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from mlx_deltamem.files.jsonl import read_json


@dataclass(frozen=True)
class Figure:
    """A measured figure and its target.

    Attributes:
        name: The name of the figure.
        target: The largest allowed value, or the smallest if `at_least`. None for a figure without a target.
        measured: The measured value.
        noise: The possible error of `measured`.
        at_least: True if larger values are better.
        rounds: The number of rounds that were measured; 0 for a figure that is counted.
    """

    name: str
    target: float | None
    measured: float
    noise: float = 0.0
    at_least: bool = False
    rounds: int = 0

    @property
    def verdict(self) -> str:
        """`pass`, `MISS`, `within noise` (missed by no more than the noise), or `yardstick` (there is no target)."""
        if self.target is None:
            return "yardstick"
        missed_by = self.target - self.measured if self.at_least else self.measured - self.target
        if missed_by <= 0:
            return "pass"
        return "MISS" if missed_by > self.noise else "within noise"

    @property
    def is_open(self) -> bool:
        """Whether the noise leaves open if the target is met."""
        return self.target is not None and 0 < self.noise >= abs(self.measured - self.target)

    @property
    def bound(self) -> str:
        """The target as text."""
        return "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:.4g}"


@dataclass(frozen=True)
class Run:
    """The figures of one run, the machine that it ran on, and whether all figures were measured."""

    machine: str
    figures: Sequence[Figure]
    is_complete: bool = True

    def save(self, file: Path) -> None:
        """Write the run as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        # Another run may be ended at any time, and the file must then be complete.
        new = file.with_name(file.name + ".new")
        new.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Run":
        """Read a run that `save` wrote.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: It is not such a file.
        """
        # A file of another form is refused below.
        values = cast(dict[str, Any], read_json(file))
        try:
            figures = [Figure(**figure) for figure in values["figures"]]
            return cls(str(values["machine"]), figures, bool(values["is_complete"]))
        except (TypeError, KeyError):
            raise ValueError(f"{file} is not the JSON of a benchmark run; expected a file from --json") from None


def collect(
    figures: Iterator[Figure],
    seconds: float,
    keep: Callable[[Figure], None],
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure figures until the time is up.

    Args:
        figures: The figures. One is measured when the iterator is asked for it.
        seconds: The time after which no figure is begun.
        keep: Called with each figure.
        clock: Returns the time in seconds.

    Returns:
        Whether all figures were measured.
    """
    start = clock()
    while clock() - start < seconds:
        figure = next(figures, None)
        if figure is None:
            return True
        keep(figure)
    return False


def changes(run: Run, earlier: Run) -> dict[str, str]:
    """By name of the figure, how it changed: `better`, `WORSE`, `as before` or `new`.

    A change is one by more than the noise of both runs together.
    """
    known = {figure.name: figure for figure in earlier.figures}
    return {
        figure.name: _change(figure, known[figure.name]) if figure.name in known else "new" for figure in run.figures
    }


def _change(figure: Figure, before: Figure) -> str:
    grown = figure.measured - before.measured
    if abs(grown) <= figure.noise + before.noise:
        return "as before"
    return "better" if (grown > 0) == figure.at_least else "WORSE"


def figures_table(run: Run, title: str, earlier: Run | None = None) -> Table:
    """A table of the figures, their targets and verdicts, and of the changes since an earlier run."""
    changed = {} if earlier is None else changes(run, earlier)
    before = {} if earlier is None else {figure.name: figure.measured for figure in earlier.figures}
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    headings = ["target", "measured", "noise", "rounds", "verdict", *(["earlier", "change"] if earlier else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    for figure in run.figures:
        noise = f"±{figure.noise:.3f}" if figure.noise else ""
        rounds = str(figure.rounds) if figure.rounds else ""
        cells = [figure.name, figure.bound, f"{figure.measured:.4g}", noise, rounds, figure.verdict]
        if earlier is not None:
            cells += [f"{before[figure.name]:.4g}" if figure.name in before else "", changed[figure.name]]
        table.add_row(*cells)
    return table


def left_open(run: Run, earlier: Run | None = None) -> list[str]:
    """Sentences about the figures that the run left open, and about what cannot be compared with an earlier run."""
    told = [
        f"Could not tell whether {figure.name} is {figure.bound}: {figure.measured:.4g} ± {figure.noise:.3f}"
        + (f" after {figure.rounds} rounds" if figure.rounds else "")
        for figure in run.figures
        if figure.is_open
    ]
    if not run.is_complete:
        told.append("The time was up: the figures that come after these were not measured")
    if earlier is not None:
        names = {figure.name for figure in run.figures}
        told += [
            f"The earlier run has {figure.name}, and this one has not"
            for figure in earlier.figures
            if figure.name not in names
        ]
        if earlier.machine != run.machine:
            told.append(f"The earlier run was on another machine: {earlier.machine}. Changes are no failure then")
    return told
