"""Keeps a run in its folder: checkpoints, the adapter as it is, and the best adapter."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
from mlx_deltamem.adapters.publish import public_name
from mlx_deltamem.core.adapter import (
    CARD_FILE,
    CURVES_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    Adapter,
    changed,
)
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.files.atomic import locked, remove_unfinished
from mlx_deltamem.training import processes
from mlx_deltamem.training.best import BEST_FOLDER
from mlx_deltamem.training.checkpoint import Checkpoint, Progress, remove_unfinished_checkpoints
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedOptimizer
from mlx_deltamem.training.settings import Settings

_FILES = (SETTINGS_FILE, METRICS_FILE, CURVES_FILE, CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
# A hidden file, so that a folder with nothing else in it counts as empty.
_LOCK = ".lock"
# The words of MLX's errors on Metal, with CUDA and without a GPU.
_OUT_OF_MEMORY = re.compile(r"malloc|out ?of ?memory|insufficient memory", re.I)
_FINGERPRINT_DIGITS = 16


class RunStoppedError(ValueError):
    """A run cannot begin or continue. If it had begun, the message gives the step and the checkpoint that is kept."""


class Keeper:
    """Keeps a run in its folder.

    Args:
        folder: The run's folder. Only the first process writes to it.
        module, optimizer, settings: The run's module, optimizer and settings.
        dtype: The dtype of the stored adapter weights.
    """

    def __init__(
        self, folder: Path, module: EpisodeModel, optimizer: ClippedOptimizer, settings: Settings, dtype: mx.Dtype
    ):
        self._folder = folder
        self._module = module
        self._optimizer = optimizer
        self._settings = settings
        self._dtype = dtype
        self._waiting: tuple[Checkpoint, Adapter] | None = None
        # The number of steps in the last checkpoint; 0 if there is none.
        self.saved = 0

    @property
    def kept(self) -> str:
        """The checkpoint that the run can be resumed from, in words for a message."""
        return f"the checkpoint after step {self.saved:,} is kept" if self.saved else "there is no checkpoint yet"

    @contextmanager
    def alone(self, resumed: bool) -> Iterator[None]:
        """Hold a lock on the folder, which is created if needed, so that no other process trains in it.

        Args:
            resumed: Whether the run was begun in this folder earlier.

        Raises:
            RunStoppedError: Another process trains in the folder or has begun another run there, or the folder cannot
                be locked.
        """
        with ExitStack() as stack:
            problem = self._take_lock(stack, resumed) if processes.is_first() else ""
            if processes.any_of(bool(problem))[0]:
                raise RunStoppedError(problem or "see the first process")
            yield

    def _take_lock(self, stack: ExitStack, resumed: bool) -> str:
        """Lock the folder; return the reason if that fails, else ""."""
        # The lock is on a file, as a session may be saved in the folder at the same time.
        lock = self._folder / _LOCK
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.touch()
            stack.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            return f"another process is training in {self._folder}; wait for it or stop it, or name another folder"
        except OSError as error:
            return f"{self._folder} cannot be locked ({error}); name a folder on another disk"
        if not resumed and (self._folder / SETTINGS_FILE).exists():
            return f"another process has begun a run in {self._folder}; name another folder"
        return ""

    @contextmanager
    def stopped_by_memory(self) -> Iterator[None]:
        """Turn an error of MLX for a step that needs too much memory into RunStoppedError."""
        try:
            yield
        except RuntimeError as error:
            if _OUT_OF_MEMORY.search(str(error)) is None:
                raise
            raise RunStoppedError(
                f"a step needs more memory than there is ({' '.join(str(error).split())}); {self.kept}: begin a new "
                "run with a smaller --batch-size or --max-write-length, or with --segment"
            ) from None

    def resume(self) -> Progress:
        """Put the run back to its last checkpoint, and remove unfinished files of killed processes.

        Returns:
            The progress of the checkpoint; an empty one if there is none.

        Raises:
            ValueError: The checkpoint is damaged, or belongs to another adapter.
        """
        checkpoint = Checkpoint.last(self._folder)
        if checkpoint is not None:
            checkpoint.restore(self._module, self._optimizer)
            self.saved = checkpoint.progress.iteration
        if processes.is_first():
            for folder in (self._folder, self._folder / BEST_FOLDER):
                for name in _FILES if folder.is_dir() else ():
                    remove_unfinished(folder / name)
            remove_unfinished_checkpoints(self._folder)
            remove_unfinished(self._folder / BEST_FOLDER)
        return Progress() if checkpoint is None else checkpoint.progress

    def keep_if_sound(self, progress: Progress) -> None:
        """Keep the run as it is now, once `note_sound` confirms it.

        A step may have spoiled the weights while they are still finite. The next step's loss shows it.
        """
        self._waiting = self._now(progress)

    def note_sound(self, done: int) -> None:
        """Note that the losses and gradients of all steps up to this one are finite.

        Raises:
            RunStoppedError: The run that waits for this cannot be saved.
        """
        if self._waiting is not None and done > self._waiting[0].progress.iteration:
            self._write(*self._waiting)

    def keep(self, progress: Progress) -> None:
        """Keep the run as it is now.

        Raises:
            RunStoppedError: It cannot be saved, or a number is not finite. The earlier files stay.
        """
        self._write(*self._now(progress))

    def keep_best(self, progress: Progress) -> None:
        """Keep the adapter as it is now as the best one, beside the last one.

        Raises:
            RunStoppedError: It cannot be saved.
        """
        adapter = self._now(progress)[1]
        self._save(lambda: adapter, self._folder / BEST_FOLDER, f"the best adapter, after step {progress.iteration},")

    def end_with_best(self) -> None:
        """Replace the last adapter with the best one.

        Raises:
            RunStoppedError: There is none, or it cannot be saved.
        """
        self._save(lambda: load_with_card(self._folder / BEST_FOLDER), self._folder, "the best adapter")

    def _save(self, adapter: Callable[[], Adapter], folder: Path, what: str) -> None:
        problem = None
        if processes.is_first():
            try:
                save_with_card(adapter(), folder)
            except (OSError, ValueError, RuntimeError) as error:
                problem = error
        self._stop_if(problem, what)

    def _stop_if(self, problem: Exception | None, what: str) -> None:
        """Raise RunStoppedError in all processes if the first one has a problem."""
        if processes.any_of(problem is not None)[0]:
            reason = problem or "see the first process"
            raise RunStoppedError(f"{what} cannot be saved ({reason}); {self.kept}") from problem

    def _now(self, progress: Progress) -> tuple[Checkpoint, Adapter]:
        adapter = current_adapter(self._module.model)
        weights = {name: weight.astype(self._dtype) for name, weight in adapter.weights.items()}
        metadata = {**adapter.metadata, **training_metadata(self._settings, adapter.metadata, progress)}
        checkpoint = Checkpoint.of(self._module, self._optimizer, progress)
        return checkpoint, replace(adapter, weights=weights, metadata=metadata)

    def _write(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._waiting = None
        done, problem = checkpoint.progress.iteration, None
        if processes.is_first():
            try:
                checkpoint.check()
                # The adapter comes first, so that a run counts as finished only when its adapter is there.
                save_with_card(adapter, self._folder)
                checkpoint.save(self._folder)
            except (OSError, ValueError, RuntimeError) as error:
                problem = error
        self._stop_if(problem, f"step {done}")
        self.saved = done


def training_metadata(settings: Settings, earlier: Mapping[str, str], progress: Progress) -> dict[str, str]:
    """Return the metadata of a trained adapter's file. The same run gives the same texts.

    Args:
        settings: The run's settings.
        earlier: The metadata of the adapter that the run began with.
        progress: The run's progress.
    """
    schedule, steps = settings.schedule, progress.iteration
    taken = f"{steps:,}" if steps == schedule.iters else f"{steps:,} of {schedule.iters:,}"
    trained = (
        f"for {public_name(settings.model)} on {public_name(settings.data)} ({progress.episodes:,} episodes): "
        f"{taken} steps of {schedule.batch_size}, seed {schedule.seed}"
    )
    metadata = {"trained": f"{earlier['trained']}; then {trained}" if "trained" in earlier else trained}
    if "changed" in earlier and not earlier["changed"].endswith(("trained", "trained further")):
        metadata["changed"] = changed(earlier, "trained")
    elif "source_adapter" in earlier and "changed" not in earlier:
        metadata["changed"] = "trained further"
    return metadata


def episodes_fingerprint(episodes: Sequence[Episode]) -> str:
    """Return a short hash of training episodes, to check that a resumed run has the same ones."""
    digest = hashlib.sha256()
    for episode in episodes:
        spans = [(each.answer, each.value, each.written, each.target, each.weight) for each in episode.questions]
        digest.update(repr((episode.written, episode.turns, spans)).encode())
        history = episode.history
        texts = (history.ids, history.message_ids, *(question.ids for question in episode.questions))
        digest.update(np.concatenate([np.array(ids, np.int32) for ids in texts]).tobytes())
        digest.update(repr([len(ids) for ids in texts]).encode())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]
