"""A training run, from its first step or from a checkpoint on."""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.cli_ui import make_console
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as train_with_mlx_lm

from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.training import health, processes
from mlx_deltamem.training.batches import Batch, BatchMaker
from mlx_deltamem.training.best import BEST, Best
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.checks import check_data
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.feed import Feed
from mlx_deltamem.training.interrupt import noticed_interrupts
from mlx_deltamem.training.keeper import Keeper, RunStoppedError
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.metrics import Metrics, Row
from mlx_deltamem.training.monitor import Monitor
from mlx_deltamem.training.optimizer import ClippedAdamW
from mlx_deltamem.training.origin import episodes_fingerprint
from mlx_deltamem.training.recall import Recall
from mlx_deltamem.training.settings import Reporting, Settings


@dataclass
class Run:
    """A training run of an attached model.

    Args:
        model: The attached model; its adapter is trained, in float32, and nothing else of it changes.
        settings: What decides the weights.
        reporting: What is told and kept on the way.
        folder: Where the run keeps its checkpoints, its metrics and the adapter.
        checkup: Measures the model's health at each look at the held-out data; None: nothing does.
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
        self._optimizer = ClippedAdamW(
            schedule.learning_rate,
            schedule.updates,
            schedule.warmup_updates,
            schedule.weight_decay,
            schedule.max_grad_norm,
        )
        dtype = getattr(mx, self.reporting.dtype)
        self._keeper = Keeper(self.folder, self._module, self._optimizer, self.settings, dtype)
        # How far it was when it was resumed, and what it is trained on.
        self._first = Progress()
        self._data, self._episodes = "", 0
        self._began = time.perf_counter()
        self._stopping = False

    @property
    def kept(self) -> str:
        """What can be gone on from, in words."""
        return self._keeper.kept

    @property
    def seconds(self) -> float:
        """The time it took so far, with that before a resumption."""
        return self._first.seconds + time.perf_counter() - self._began

    def check(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        """Check that batches can be made of the training data.

        Raises:
            ValueError: As `check_data`, or the best adapter is wanted and there is nothing to tell it by.
        """
        check_data(episodes, held_out, self.settings.schedule, self.model.attachment.config)
        if self.reporting.keep == BEST and not held_out:
            raise ValueError("--keep best needs held-out data to tell it by; expected a valid.jsonl, or --keep last")

    def alone(self, resumed: bool) -> AbstractContextManager[None]:
        """Within it, no other process trains in the folder, which is made where there is none.

        Args:
            resumed: Whether the run is one that was begun there already.

        Raises:
            RunStoppedError: One does, or has begun a run that is not this one, or nobody can tell.
        """
        return self._keeper.alone(resumed)

    def resume(self) -> int:
        """Go back to the last checkpoint in the folder, if there is one; returns the steps done.

        Raises:
            ValueError: It is damaged, or of another adapter.
        """
        self._first = self._keeper.resume()
        return self._first.iteration

    def train(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        """Train to the end; where that is reached already, nothing is done but that the adapter is written again.

        Raises:
            RunStoppedError: A loss or a gradient is not finite, or nothing can be saved; the last checkpoint is kept.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint and the adapter as it is were saved.
            ValueError: As `check`, or the data is another one than before the run was resumed.
        """
        self.check(episodes, held_out)
        self._data, self._episodes = episodes_fingerprint(episodes), len(episodes)
        if self._first.data not in ("", self._data):
            raise ValueError(
                f"{self.settings.data} is not what the run in {self.folder} was begun with (or it was begun by another "
                "version of mlx_deltamem); bring that back to go on"
            )
        self._began, iters = time.perf_counter(), self.settings.schedule.iters
        with noticed_interrupts(self._notice_interrupt, self._give_up):
            if self._first.iteration < iters:
                if processes.is_first():
                    Metrics(self.folder).go_back(self._first.iteration)
                self._take_steps(episodes, held_out)
                self._check(iters)
            self._keeper.keep(self._progress(iters))
            if self.reporting.keep == BEST:
                self._keeper.end_with_best()

    def _take_steps(self, episodes: Sequence[Episode], held_out: Sequence[Episode]) -> None:
        schedule = self.settings.schedule
        kinds = sorted({question.kind for each in held_out for question in each.questions} - {""})
        self._module.recall = Recall(kinds)
        maker = BatchMaker(self.model.attachment.config, schedule.value_weight, kinds)
        feed = Feed(maker, schedule.seed, self._first.iteration, self.reporting.val_batches, self._between)
        monitor = Monitor(
            self.folder,
            self._module,
            self._optimizer,
            feed,
            self._first,
            schedule.iters,
            self.reporting.steps_per_report,
            self._looked,
        )
        self._best = Best(self.folder, None if self.checkup is None else self.reporting.health_limit)
        with tempfile.TemporaryDirectory() as unused, head_at_positions(self.model), self._keeper.told_of_memory():
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

    def _between(self, done: int) -> None:
        """What happens after each step, and before each held-out batch."""
        stopping = self._check(done)
        new = self._complete(done) > self._keeper.saved
        if new and done % self.reporting.save_every == 0:
            self._keeper.keep_if_sound(self._progress(done))
        if stopping:
            if new:
                self._keeper.keep(self._progress(done))
            raise KeyboardInterrupt

    def _looked(self, row: Row) -> bool:
        """Measure the model's health at a look at the held-out data, and keep the adapter if it is the best so far."""
        if self.checkup is not None and processes.is_first():
            # The others wait for what the first one makes of it.
            row |= health.look(self.checkup, self.reporting.health_limit)
        is_best = self._best.note(row)
        if is_best:
            self._keeper.keep_best(self._progress(row["iteration"]))
        return is_best

    def _check(self, done: int) -> bool:
        """Stop the run where numbers are not finite; returns whether it is to end, in whatever process."""
        loss, norm = self._module.watch.loss.item(), self._optimizer.gradient_norm
        broken, stopping = processes.any_of(not (math.isfinite(loss) and math.isfinite(norm)), self._stopping)
        if broken:
            where = f"step {done}" if self._module.training else f"the held-out data after step {done}"
            begin = f"begin a new run with its adapter (--start {self.folder}) and" if self._keeper.saved else "try"
            raise RunStoppedError(
                f"{where} gave a loss of {loss:g} and a gradient of norm {norm:g}; {self.kept}: "
                f"{begin} a lower --learning-rate or a longer --warmup"
            )
        self._keeper.note_sound(done)
        return stopping

    def _complete(self, done: int) -> int:
        """The steps that the weights are made of: the gradients of an update's first steps are in mlx-lm's trainer
        only, so that these steps will be done again."""
        return done - done % self.settings.schedule.grad_accumulation_steps

    def _progress(self, done: int) -> Progress:
        return Progress(self._complete(done), self.seconds, self._episodes, self._data)

    def _notice_interrupt(self) -> None:
        self._stopping = True
        _say("Stopping after this step; Ctrl-C once more stops at once.")

    def _give_up(self) -> None:
        # The progress bar has hidden it.
        make_console().show_cursor(True)
        _say(f"Stopped at once; {self.kept}.")


def _say(text: str) -> None:
    if processes.is_first():
        make_console().print(f"  {text}", markup=False)


def freeze_all_but_adapter(model: nn.Module) -> None:
    """Leave only the adapter's weights trainable, and make them float32, whatever they were stored as."""
    model.freeze()
    for attention in attached_attention(model).values():
        attention.delta_mem.update(tree_map(lambda weight: weight.astype(mx.float32), attention.delta_mem.parameters()))
        attention.delta_mem.unfreeze()
