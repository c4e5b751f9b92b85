"""Reports of a training run: lines on the screen below mlx-lm's, the file `metrics.jsonl`, and the figure of curves."""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from mlx_lm import cli_ui
from mlx_lm.cli_ui import make_console
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs
from rich.markup import escape

from mlx_deltamem.core.adapter import CURVES_FILE, METRICS_FILE
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.jsonl import Json, json_lines
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.plot import load_figures
from mlx_deltamem.training import processes
from mlx_deltamem.training.batches import Feed
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedOptimizer

# mlx-lm's own console writes colours into files too, and the names of files and models as they are.
cast(Any, cli_ui).Console = Console

# The numbers of one report or one evaluation, by name; None for a number that is not finite.
Row = dict[str, float | None]


@dataclass(frozen=True)
class Metrics:
    """The file `metrics.jsonl`: a line for each report, and a line for each evaluation on the held-out data.

    Attributes:
        folder: The run's folder.
    """

    folder: Path

    @property
    def _path(self) -> Path:
        return self.folder / METRICS_FILE

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append the numbers after a step, `iteration`. Numbers that are not finite become null, as JSON requires.

        Raises:
            OSError: The file cannot be written.
        """
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """Return all rows. A line that is not a row, such as the unfinished line of a killed process, is left out."""
        if not self._path.is_file():
            return []
        return [cast(Row, record.value) for record in json_lines(self._path) if _is_row(record.value)]

    def go_back(self, iteration: int) -> None:
        """Remove the rows that a run resumed after this step will add again: all later ones, and its evaluation."""
        if not self._path.is_file():
            return
        kept = [row for row in self.rows() if _step(row) < iteration + ("train_loss" in row)]
        with new_file(self._path) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _is_row(value: Json) -> bool:
    """Whether a line of the file is a row: a step that is counted, and numbers."""
    if not isinstance(value, dict) or not _is_number(value.get("iteration")):
        return False
    return isinstance(value["iteration"], int) and all(each is None or _is_number(each) for each in value.values())


def _is_number(value: Json) -> bool:
    """Whether a value is a number that fits into a float."""
    return type(value) in (int, float) and abs(cast(float, value)) <= sys.float_info.max


def _step(row: Row) -> float:
    return cast(float, row["iteration"])


class Monitor(TrainingCallback):
    """Receives the reports of mlx-lm's trainer, completes them, prints them and adds them to the metrics.

    Args:
        folder: The run's folder. Only the first process writes to it and prints.
        module, optimizer, feed: The run's module, optimizer and source of batches.
        first: The progress of the run when it was resumed. mlx-lm counts its steps from there.
        args: The arguments given to mlx-lm. Their `iters` are the steps that are left.
        evaluated: Called in all processes with the row of each evaluation, to which it may add numbers; returns
            whether the adapter is the best so far.

    Attributes:
        reporter: Gets every row of the metrics too, after it is set.
    """

    def __init__(
        self,
        folder: Path,
        module: EpisodeModel,
        optimizer: ClippedOptimizer,
        feed: Feed,
        first: Progress,
        args: TrainingArgs,
        evaluated: Callable[[Row], bool],
    ):
        self._metrics = Metrics(folder)
        self._module = module
        self._optimizer = optimizer
        self._feed = feed
        self._first = first
        self._args = args
        self._iters = first.iteration + args.iters
        self._evaluated = evaluated
        self.reporter: TrainingCallback | None = None
        self._began = time.perf_counter()
        self._reported = first.iteration
        self._tokens = 0

    def on_train_loss_report(self, train_info: dict) -> None:
        iteration, watch = self._first.iteration + train_info["iteration"], self._module.watch
        steps, self._reported = iteration - self._reported, iteration
        # mlx-lm divides by steps_per_report steps, but the last report may cover fewer.
        seconds = self._args.steps_per_report / train_info["iterations_per_second"]
        read, self._tokens = self._feed.tokens - self._tokens, self._feed.tokens
        tokens, gate, norm = processes.sum_of(read, watch.write_gate, watch.state_norm)
        row = {
            "iteration": iteration,
            "train_loss": train_info["train_loss"],
            "learning_rate": train_info["learning_rate"],
            "gradient_norm": self._optimizer.gradient_norm,
            "write_gate": gate / processes.count(),
            "state_norm": norm / processes.count(),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / steps,
            "seconds": self._first.seconds + time.perf_counter() - self._began,
            "peak_memory_gb": train_info["peak_memory"],
        }
        if processes.is_first():
            self._metrics.add(row)
            if self.reporter is not None:
                self.reporter.on_train_loss_report(row)
            print_below(
                f"{iteration:,} of {self._iters:,} · β {_or_dash(row['write_gate'], '.3f')} · "
                f"‖S‖ {_or_dash(row['state_norm'], '.2f')} · "
                f"gradient {row['gradient_norm']:.3g} · {row['tokens_per_second']:,.0f} tokens/s read · "
                f"{self._time_left(iteration)} left"
            )

    def on_val_loss_report(self, val_info: dict) -> None:
        accuracy = self._module.accuracy.take()
        if not self._is_due(val_info["iteration"]):
            return
        row: Row = {"iteration": self._first.iteration + val_info["iteration"], "val_loss": val_info["val_loss"]}
        row |= {f"val_{name}": value for name, value in accuracy.items()}
        is_best = self._evaluated(row)
        if not processes.is_first():
            return
        self._metrics.add(row)
        if self.reporter is not None:
            self.reporter.on_val_loss_report(row)
        best = " · the best so far" if is_best else ""
        for kind, shares in by_kind(accuracy).items():
            print_below(f"  {escape(kind)}: {described(shares)}" if kind else f"held out: {described(shares)}{best}")

    def _is_due(self, step: int) -> bool:
        """Whether a run that was never stopped evaluates here too. mlx-lm adds an evaluation when a run is resumed.

        Args:
            step: The number of steps since the run began or was resumed.
        """
        is_begun = self._first.iteration or step
        return not is_begun or step + 1 == self._args.iters or not (step + 1) % self._args.steps_per_eval

    def _time_left(self, iteration: int) -> timedelta:
        """The expected time of the remaining steps, evaluations included, at the pace since the run was resumed."""
        each = (time.perf_counter() - self._began) / (iteration - self._first.iteration)
        return timedelta(seconds=round(each * (self._iters - iteration)))


def _or_dash(number: float, form: str) -> str:
    """A number as a text; a dash for one that is not known."""
    return "–" if math.isnan(number) else format(number, form)


def by_kind(accuracy: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Sort the shares of `Accuracy.take` by the kind of questions; "" is all questions."""
    kinds = dict.fromkeys(name.partition(":")[2] for name in accuracy)
    return {
        kind: {name.partition(":")[0]: value for name, value in accuracy.items() if name.partition(":")[2] == kind}
        for kind in kinds
    }


def described(accuracy: Mapping[str, float]) -> str:
    """The shares of one kind of questions, in words."""
    parts = []
    if "answers" in accuracy:
        parts.append(f"{accuracy['answers']:.1%} of {accuracy['questions']:,} answers right")
    if "values" in accuracy:
        parts.append(f"{accuracy['values']:.1%} of their values")
    if "alike" in accuracy:
        parts.append(f"{accuracy['alike']:.1%} of tokens as the frozen model")
    return ", ".join(parts)


def print_below(text: str) -> None:
    """Print a line below one of mlx-lm's, indented as its columns are. Brackets are rich's markup."""
    make_console().print(f"          [ui.muted]{text}[/ui.muted]")


def draw_curves(folder: Path) -> Path | None:
    """Draw the metrics of the run in a folder; return the figure's path, or None if matplotlib is not installed.

    Raises:
        OSError: The figure cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    load_figures("training").draw(Metrics(folder).rows(), folder.absolute().name, folder / CURVES_FILE)
    return folder / CURVES_FILE
