"""A training run, from its first step or from a checkpoint on."""

import math
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as train_with_mlx_lm

from mlx_deltamem.adapter_folder import save_adapter
from mlx_deltamem.attach import attached_attention, current_adapter
from mlx_deltamem.training.answers import head_at_positions
from mlx_deltamem.training.batches import Batch, BatchMaker
from mlx_deltamem.training.checkpoint import Progress, last_checkpoint, load_checkpoint, save_checkpoint
from mlx_deltamem.training.episodes import Episode
from mlx_deltamem.training.feed import Feed
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.monitor import Monitor, forget_after
from mlx_deltamem.training.optimizer import ClippedAdamW
from mlx_deltamem.training.settings import Reporting, Settings


class RunStoppedError(ValueError):
    """A run that cannot go on; the message says at which step and what is left of it."""


@dataclass
class Run:
    """A training run of an attached model.

    Args:
        model: The attached model; its adapter is trained, in float32, and nothing else of it changes.
        settings: What decides the weights.
        reporting: What is told on the way.
        folder: Where the run keeps its checkpoints, its metrics and the adapter.
    """

    model: nn.Module
    settings: Settings
    reporting: Reporting
    folder: Path

    def __post_init__(self) -> None:
        freeze_all_but_adapter(self.model)
        schedule = self.settings.schedule
        self._module = EpisodeModel(self.model, self.settings.terms)
        self._optimizer = ClippedAdamW(
            schedule.learning_rate,
            schedule.updates,
            schedule.warmup_updates,
            schedule.weight_decay,
            schedule.max_grad_norm,
        )
        self._first = Progress()
        self._saved = 0
        self._stop = False
        self._started = time.perf_counter()

    def resume(self) -> int:
        """Go back to the last checkpoint in the folder; returns the steps done.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged.
        """
        path = last_checkpoint(self.folder)
        if path is None:
            raise FileNotFoundError(f"{self.folder} has no checkpoint to resume from; start the run without --resume")
        self._first = load_checkpoint(path, self._module, self._optimizer)
        self._saved = self._first.iteration
        if self._is_first_process:
            forget_after(self.folder, self._first.iteration)
        return self._first.iteration

    def train(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> float:
        """Train to the end; returns the seconds it took, with those before a resumption.

        Raises:
            RunStoppedError: A loss or a gradient is not finite; the last checkpoint is kept.
            KeyboardInterrupt: Ctrl-C; a checkpoint and the adapter as it is were saved.
            ValueError: There are too few episodes.
        """
        schedule, first = self.settings.schedule, self._first.iteration
        self._started = time.perf_counter()
        maker = BatchMaker(self.model.attachment.config, schedule.value_weight)
        feed = Feed(maker, schedule.seed, first, self._between)
        folder = self.folder if self._is_first_process else None
        monitor = Monitor(folder, self._module, self._optimizer, feed, first, schedule.iters)
        with tempfile.TemporaryDirectory() as unused, _noticed_interrupt(self), head_at_positions(self.model):
            # mlx-lm keeps weights of its own making; ours are in the checkpoints.
            train_with_mlx_lm(
                self._module,
                self._optimizer,
                episodes,
                held_out,
                self._training_args(Path(unused) / "unused.safetensors"),
                loss=lambda module, *batch: module(Batch.of(*batch)),
                iterate_batches=feed,
                training_callback=monitor,
            )
        self._check(schedule.iters)
        self._save(schedule.iters)
        return self._seconds

    def _training_args(self, unused: Path) -> TrainingArgs:
        schedule, reporting = self.settings.schedule, self.reporting
        steps = schedule.iters - self._first.iteration
        return TrainingArgs(
            batch_size=schedule.batch_size,
            iters=steps,
            val_batches=reporting.val_batches,
            steps_per_report=reporting.steps_per_report,
            steps_per_eval=reporting.steps_per_eval,
            steps_per_save=steps + 1,
            adapter_file=str(unused),
            grad_accumulation_steps=schedule.grad_accumulation_steps,
        )

    @property
    def _is_first_process(self) -> bool:
        return mx.distributed.init().rank() == 0

    @property
    def _seconds(self) -> float:
        return self._first.seconds + time.perf_counter() - self._started

    def _between(self, done: int) -> None:
        """What happens after each step, and before each held-out batch."""
        if done > self._first.iteration:
            self._check(done)
        if done % self.reporting.save_every == 0:
            self._save(done)
        if self._any(self._stop):
            self._save(done)
            raise KeyboardInterrupt

    def _check(self, done: int) -> None:
        loss, norm = self._module.watch.loss.item(), self._optimizer.state.get("gradient_norm", mx.array(0.0)).item()
        if self._any(not (math.isfinite(loss) and math.isfinite(norm))):
            kept = f"checkpoint {self._saved} is kept" if self._saved else "there is no checkpoint yet"
            raise RunStoppedError(
                f"step {done} gave a loss of {loss} and a gradient of norm {norm}; {kept}: "
                "try a lower --learning-rate or a longer --warmup"
            )

    def _any(self, mine: bool) -> bool:
        """Whether it holds in any process, so that all of them stop at one step."""
        return bool(mx.distributed.all_sum(mx.array(float(mine)), stream=mx.cpu).item())

    def _save(self, done: int) -> None:
        # Within an update's steps its gradients so far are nowhere but in the trainer: those steps are done again.
        done -= done % self.settings.schedule.grad_accumulation_steps
        if done <= self._saved:
            return
        self._saved = done
        if self._is_first_process:
            save_checkpoint(self.folder, self._module, self._optimizer, Progress(done, self._seconds))
            save_adapter(current_adapter(self.model), self.folder)


def freeze_all_but_adapter(model: nn.Module) -> None:
    """Leave only the adapter's weights trainable, and make them float32, whatever they were stored as."""
    model.freeze()
    for attention in attached_attention(model).values():
        attention.delta_mem.update(tree_map(lambda weight: weight.astype(mx.float32), attention.delta_mem.parameters()))
        attention.delta_mem.unfreeze()


@contextmanager
def _noticed_interrupt(run: Run) -> Iterator[None]:
    """Within it, Ctrl-C ends the run after its step; a second one ends it at once."""

    def interrupt(*_: object) -> None:
        if run._stop:
            raise KeyboardInterrupt
        run._stop = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
