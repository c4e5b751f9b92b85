"""What a run tells on its way: on the screen, beside mlx-lm's own lines, and in `metrics.jsonl`."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from mlx_lm.tuner.callbacks import TrainingCallback
from rich.markup import escape

from mlx_deltamem.training import processes
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.feed import Feed
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.metrics import Metrics, Row
from mlx_deltamem.training.optimizer import ClippedAdamW
from mlx_deltamem.training.screen import tell


class Monitor(TrainingCallback):
    """Reports of mlx-lm's trainer, with what it does not know.

    Args:
        folder: The run's folder; the first process alone writes there, and on the screen.
        module, optimizer, feed: Of the run.
        first: How far the run was before; mlx-lm counts from there.
        iters: Steps of the whole run.
        steps_per_report: As mlx-lm was told.
        looked: Called with the numbers of each look at the held-out data, in all processes, and adds its own; returns
            whether it is the best.
    """

    def __init__(
        self,
        folder: Path,
        module: EpisodeModel,
        optimizer: ClippedAdamW,
        feed: Feed,
        first: Progress,
        iters: int,
        steps_per_report: int,
        looked: Callable[[Row], bool],
    ):
        self._metrics = Metrics(folder)
        self._module = module
        self._optimizer = optimizer
        self._feed = feed
        self._first = first
        self._iters = iters
        self._steps_per_report = steps_per_report
        self._looked = looked
        self._began = time.perf_counter()
        self._reported = first.iteration
        self._tokens = 0

    def on_train_loss_report(self, train_info: dict) -> None:
        iteration, watch = self._first.iteration + train_info["iteration"], self._module.watch
        steps, self._reported = iteration - self._reported, iteration
        # mlx-lm takes every report to be of that many steps; the last one may be of fewer.
        seconds = self._steps_per_report / train_info["iterations_per_second"]
        read, self._tokens = self._feed.tokens - self._tokens, self._feed.tokens
        tokens, gate, norm = processes.sum_of(read, watch.write_gate.item(), watch.state_norm.item())
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
            tell(
                f"{iteration:,} of {self._iters:,} · β {row['write_gate']:.3f} · ‖S‖ {row['state_norm']:.2f} · "
                f"gradient {row['gradient_norm']:.3g} · {row['tokens_per_second']:,.0f} tokens/s read · "
                f"{self._left(iteration)} left"
            )

    def on_val_loss_report(self, val_info: dict) -> None:
        recall = self._module.recall.take()
        row = {"iteration": self._first.iteration + val_info["iteration"], "val_loss": val_info["val_loss"]}
        row |= {f"val_{name}": value for name, value in recall.items()}
        is_best = self._looked(row)
        if not processes.is_first():
            return
        self._metrics.add(row)
        best = " · the best so far" if is_best else ""
        if recall:
            tell(f"held out: {_described(recall)}{best}")
        for kind in dict.fromkeys(name.partition(":")[2] for name in recall if ":" in name):
            own = {name.partition(":")[0]: value for name, value in recall.items() if name.partition(":")[2] == kind}
            tell(f"  {escape(kind)}: {_described(own)}")

    def _left(self, iteration: int) -> timedelta:
        """The time that the rest of the run takes, with looks at the held-out data and all, if it goes on like this."""
        each = (time.perf_counter() - self._began) / (iteration - self._first.iteration)
        return timedelta(seconds=round(each * (self._iters - iteration)))


def _described(recall: Mapping[str, float]) -> str:
    """What was counted, in words."""
    parts = []
    if "answers" in recall:
        parts.append(f"{recall['answers']:.1%} of {recall['questions']:,} answers right")
    if "values" in recall:
        parts.append(f"{recall['values']:.1%} of their values")
    if "alike" in recall:
        parts.append(f"{recall['alike']:.1%} of tokens as the frozen model")
    return ", ".join(parts)
