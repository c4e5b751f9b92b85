"""What a run tells on its way: on the screen, beside mlx-lm's own lines, and in `metrics.jsonl`."""

import json
import math
import os
import time
from datetime import timedelta
from pathlib import Path

from mlx_lm.cli_ui import make_console
from mlx_lm.tuner.callbacks import TrainingCallback

from mlx_deltamem.files import new_file
from mlx_deltamem.training.feed import Feed
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedAdamW

METRICS_FILE = "metrics.jsonl"


class Monitor(TrainingCallback):
    """Reports of mlx-lm's trainer, with what it does not know.

    Args:
        folder: The run's folder; None in all processes but the first, which report nothing.
        module, optimizer, feed: Of the run.
        first: Steps done before; mlx-lm counts from there.
        iters: Steps of the whole run.
    """

    def __init__(
        self,
        folder: Path | None,
        module: EpisodeModel,
        optimizer: ClippedAdamW,
        feed: Feed,
        first: int,
        iters: int,
    ):
        self._folder = folder
        self._module = module
        self._optimizer = optimizer
        self._feed = feed
        self._first = first
        self._iters = iters
        self._since = time.perf_counter()
        self._tokens = 0

    def on_train_loss_report(self, train_info: dict) -> None:
        iteration = self._first + train_info["iteration"]
        watch, now, tokens = self._module.watch, time.perf_counter(), self._feed.tokens
        seconds, self._since = now - self._since, now
        rate, self._tokens = (tokens - self._tokens) / seconds, tokens
        left = (self._iters - iteration) / train_info["iterations_per_second"]
        row = {
            "iteration": iteration,
            "train_loss": train_info["train_loss"],
            "learning_rate": train_info["learning_rate"],
            "gradient_norm": self._optimizer.state["gradient_norm"].item(),
            "write_gate": watch.write_gate.item(),
            "state_norm": watch.state_norm.item(),
            "tokens_per_second": rate,
            "seconds_per_step": 1 / train_info["iterations_per_second"],
            "peak_memory_gb": train_info["peak_memory"],
        }
        self._record(row)
        self._say(
            f"{iteration:,} of {self._iters:,} · β {row['write_gate']:.3f} · ‖S‖ {row['state_norm']:.2f} · "
            f"gradient {row['gradient_norm']:.2f} · {rate:,.0f} tokens/s read · {_duration(left)} left"
        )

    def on_val_loss_report(self, val_info: dict) -> None:
        recall = self._module.recall.take()
        row = {"iteration": self._first + val_info["iteration"], "val_loss": val_info["val_loss"]}
        self._record(row | {f"val_{name}": value for name, value in recall.items()})
        if recall:
            values = f", {recall['values']:.1%} of their values" if "values" in recall else ""
            self._say(f"held out: {recall['answers']:.1%} of {recall['questions']} answers right{values}")

    def _record(self, row: dict[str, float]) -> None:
        if self._folder is None:
            return
        # JSON has no NaN.
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with (self._folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _say(self, text: str) -> None:
        if self._folder is not None:
            make_console().print(f"          [ui.muted]{text}[/ui.muted]")


def forget_after(folder: Path, iteration: int) -> None:
    """Remove what a run noted after the checkpoint it goes on from."""
    path = folder / METRICS_FILE
    if not path.exists():
        return
    kept = [row for row in read_metrics(folder) if row["iteration"] <= iteration]
    with new_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`; a last line that was cut off is left out."""
    rows = []
    for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
