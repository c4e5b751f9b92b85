"""A training run, from its first step or from a checkpoint."""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.cli_ui import make_console
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as train_with_mlx_lm

from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.training import processes
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.batch import Batch
from mlx_deltamem.training.batches import BatchMaker, Feed, check_data
from mlx_deltamem.training.best import Best
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.compiling import compiled_where_faster, is_compiled
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.health import measure_health
from mlx_deltamem.training.interrupt import noticed_interrupts
from mlx_deltamem.training.keeper import Keeper, RunStoppedError, episodes_fingerprint
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.monitor import Metrics, Monitor, Row
from mlx_deltamem.training.optimizer import clipped_optimizer
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.services import reporter
from mlx_deltamem.training.settings import BEST, Reporting, Settings


class _EnoughError(Exception):
    """The run ends early: the evaluations do not get better."""


@dataclass
class Run:
    """A training run of an attached model.

    Args:
        model: The attached model. Its adapter is trained in float32; its other weights do not change.
        settings: The settings that decide the trained weights.
        reporting: The settings of reports and checkpoints.
        folder: The folder for the checkpoints, the metrics and the adapter.
        checkup: Measures the model's health at each evaluation; None: no such check.
    """

    model: nn.Module
    settings: Settings
    reporting: Reporting
    folder: Path
    checkup: Checkup | None = None

    def __post_init__(self) -> None:
        freeze_all_but_adapter(self.model)
        schedule = self.settings.schedule
        self._module = EpisodeModel(self.model, self.settings.terms, self.settings.schedule.segment)
        self._optimizer = clipped_optimizer(
            schedule.optimizer,
            schedule.learning_rate,
            schedule.updates,
            schedule.warmup_updates,
            schedule.weight_decay,
            schedule.max_grad_norm,
        )
        dtype = getattr(mx, self.reporting.dtype)
        self._keeper = Keeper(self.folder, self._module, self._optimizer, self.settings, dtype)
        # The progress when the run was resumed, and the fingerprint and number of the training episodes.
        self._first = Progress()
        self._data, self._episodes = "", 0
        self._began = time.perf_counter()
        self._stopping = False
        # The steps done when there were enough evaluations that were not the best so far.
        self._done = 0

    @property
    def kept(self) -> str:
        """The checkpoint that the run can be resumed from, in words for a message."""
        return self._keeper.kept

    @property
    def seconds(self) -> float:
        """The time that the run took so far, including the time before it was resumed."""
        return self._first.seconds + time.perf_counter() - self._began

    def check(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        """Check that the run can train on these episodes.

        Raises:
            ValueError: As `check_data`; the best adapter is wanted and there is no held-out data; or the processes have
                other data.
        """
        check_data(episodes, held_out, self.settings.schedule, self.model.attachment.config)
        for name, wanted in (
            ("keep best", self.reporting.keep == BEST),
            ("early-stopping", self.reporting.early_stopping),
        ):
            if wanted and not held_out:
                raise ValueError(f"--{name} needs held-out data; expected a valid.jsonl, or leave the option out")
        # One process needs no hash of its data here.
        if processes.count() == 1:
            return
        mine = f"{episodes_fingerprint(episodes)} {episodes_fingerprint(held_out)}".encode()
        if processes.any_of(mine != processes.from_first(mine))[0]:
            raise ValueError(
                f"the records in {self.settings.data} are not the same in all processes; expected the same files on "
                "every machine"
            )

    def alone(self, resumed: bool) -> AbstractContextManager[None]:
        """Lock the folder, which is created if needed, so that no other process trains in it.

        Args:
            resumed: Whether the run was begun in this folder earlier.

        Raises:
            RunStoppedError: Another process trains in the folder or has begun another run there, or the folder cannot
                be locked.
        """
        return self._keeper.alone(resumed)

    def resume(self) -> int:
        """Go back to the last checkpoint in the folder, if there is one, and return the number of steps done.

        Raises:
            ValueError: The checkpoint is damaged, or belongs to another adapter.
        """
        self._first = self._keeper.resume()
        return self._first.iteration

    def train(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        """Train to the last step. A run that is complete only writes its adapter again.

        Raises:
            RunStoppedError: A loss or a gradient is not finite, or nothing can be saved. The last checkpoint is kept.
            KeyboardInterrupt: Ctrl-C or SIGTERM. A checkpoint and the adapter as it is are saved.
            ValueError: As `check`; or a resumed run has other data than at its beginning.
        """
        self.check(episodes, held_out)
        self._data, self._episodes = episodes_fingerprint(episodes), len(episodes)
        if self._first.data not in ("", self._data):
            raise ValueError(
                f"the data of {self.settings.data} differs from the data that the run in {self.folder} was begun with "
                "(or another version of mlx_deltamem began it); restore that data to go on"
            )
        self._began, iters = time.perf_counter(), self.settings.schedule.iters
        with noticed_interrupts(self._notice_interrupt, self._give_up):
            if self._first.iteration < iters:
                if processes.is_first():
                    Metrics(self.folder).go_back(self._first.iteration)
                try:
                    self._take_steps(episodes, held_out)
                except _EnoughError:
                    iters = self._done
                    _print(f"No better adapter in {self._best.worse} evaluations: the run ends after step {iters:,}.")
                self._check(iters)
            self._keeper.keep(self._progress(iters))
            if self.reporting.keep == BEST:
                self._keeper.end_with_best()

    def _take_steps(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        schedule = self.settings.schedule
        kinds = sorted({question.kind for each in held_out for question in each.questions} - {""})
        self._module.accuracy = Accuracy(kinds)
        maker = BatchMaker(self.model.attachment.config, schedule.value_weight, kinds, compiled=is_compiled())
        feed = Feed(maker, schedule.seed, self._first.iteration, self.reporting.val_batches, self._between)
        args = self._training_args()
        monitor = Monitor(self.folder, self._module, self._optimizer, feed, self._first, args, self._evaluated)
        if processes.is_first():
            monitor.reporter = reporter(self.reporting, self.settings.flat(), self.folder)
        self._best = Best(self.folder, None if self.checkup is None else self.reporting.health_limit)
        with (
            tempfile.TemporaryDirectory() as unused,
            head_at_positions(self.model),
            self._keeper.stopped_by_memory(),
            compiled_where_faster(),
        ):
            # mlx-lm writes a file of weights at the end. It is not used: the weights are in the checkpoints.
            train_with_mlx_lm(
                self._module,
                self._optimizer,
                episodes,
                held_out,
                replace(args, adapter_file=str(Path(unused) / "unused.safetensors")),
                loss=lambda module, *batch: module(Batch.of(*batch)),
                iterate_batches=feed,
                training_callback=monitor,
            )

    def _training_args(self) -> TrainingArgs:
        schedule, reporting = self.settings.schedule, self.reporting
        steps = schedule.iters - self._first.iteration
        return TrainingArgs(
            batch_size=schedule.batch_size,
            iters=steps,
            val_batches=reporting.val_batches,
            steps_per_report=_Period.of(reporting.steps_per_report, self._first.iteration),
            steps_per_eval=_Period.of(reporting.steps_per_eval, self._first.iteration),
            steps_per_save=steps + 1,
            grad_accumulation_steps=schedule.grad_accumulation_steps,
        )

    def _between(self, done: int) -> None:
        """Check the numbers and keep checkpoints. This runs after each step, and before each held-out batch."""
        stopping = self._check(done)
        new = self._complete(done) > self._keeper.saved
        if new and done % self.reporting.save_every == 0:
            self._keeper.keep_if_sound(self._progress(done))
        if stopping:
            if new:
                self._keeper.keep(self._progress(done))
            raise KeyboardInterrupt
        enough = 0 < self.reporting.early_stopping <= self._best.worse
        if enough and self._module.training and self._complete(done) == done:
            self._done = done
            raise _EnoughError

    def _evaluated(self, row: Row) -> bool:
        """Complete an evaluation: measure the model's health, and keep the adapter if it is the best so far."""
        if self.checkup is not None and processes.is_first():
            # The other processes wait for the verdict in `note`.
            row |= measure_health(self.checkup, self.reporting.health_limit)
        is_best = self._best.note(row)
        if is_best:
            self._keeper.keep_best(self._progress(cast(int, row["iteration"])))
        return is_best

    def _check(self, done: int) -> bool:
        """Stop the run if the loss or the gradient is not finite; return whether any process was interrupted."""
        loss, norm = float(self._module.watch.loss), self._optimizer.gradient_norm
        broken, stopping = processes.any_of(not (math.isfinite(loss) and math.isfinite(norm)), self._stopping)
        if broken:
            # It may be the loss of another process.
            (loss,) = processes.sum_of(loss)
            where = f"step {done}" if self._module.training else f"the held-out data after step {done}"
            begin = f"begin a new run with its adapter (--start {self.folder}) and" if self._keeper.saved else "try"
            raise RunStoppedError(
                f"{where} gave a loss of {loss:g} and a gradient of norm {norm:g}; {self.kept}: "
                f"{begin} a lower --learning-rate or a longer --warmup"
            )
        self._keeper.note_sound(done)
        return stopping

    def _complete(self, done: int) -> int:
        """The number of steps that are part of the weights.

        Only mlx-lm's trainer has the gradients of an update that is not complete. A resumed run repeats these steps.
        """
        return done - done % self.settings.schedule.grad_accumulation_steps

    def _progress(self, done: int) -> Progress:
        return Progress(self._complete(done), self.seconds, self._episodes, self._data)

    def _notice_interrupt(self) -> None:
        self._stopping = True
        _print("Stopping after this step; Ctrl-C once more stops at once.")

    def _give_up(self) -> None:
        # The progress bar has hidden the cursor.
        make_console().show_cursor(True)
        _print(f"Stopped at once; {self.kept}.")


class _Period(int):
    """A number of steps after which mlx-lm does something, counted from the beginning of a run that was resumed.

    mlx-lm counts its steps from 1 on, and compares `step % period` with 0.
    """

    done: int

    @classmethod
    def of(cls, steps: int, done: int) -> "_Period":
        """A period of `steps` in a run that was resumed after `done` steps."""
        period = cls(steps)
        period.done = done
        return period

    def __rmod__(self, step: int) -> int:
        return (self.done + step) % int(self)


def _print(text: str) -> None:
    if processes.is_first():
        make_console().print(f"  {text}", markup=False)
