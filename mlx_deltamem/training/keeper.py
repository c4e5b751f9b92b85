"""What is left of a run when it ends, however it ends: its last checkpoints, and its adapter as it was then."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.adapters.folder import load_adapter, save_adapter
from mlx_deltamem.core.adapter import CARD_FILE, CURVES_FILE, METRICS_FILE, SETTINGS_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.files.atomic import locked, remove_unfinished
from mlx_deltamem.training import processes
from mlx_deltamem.training.best import BEST_FOLDER
from mlx_deltamem.training.checkpoint import Checkpoint, Progress, remove_unfinished_checkpoints
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedAdamW
from mlx_deltamem.training.origin import training_metadata
from mlx_deltamem.training.settings import Settings

_FILES = (SETTINGS_FILE, METRICS_FILE, CURVES_FILE, CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
# Hidden, so that a folder with nothing else in it counts as empty.
_LOCK = ".lock"
# What MLX says on Metal, with CUDA and without a GPU.
_OUT_OF_MEMORY = re.compile(r"malloc|out ?of ?memory|insufficient memory", re.I)


class RunStoppedError(ValueError):
    """A run that cannot begin or go on; in the latter case, the message says at which step and what is left of it."""


class Keeper:
    """Keeps a run in its folder.

    Args:
        folder: Of the run; the first process alone writes there.
        module, optimizer, settings: Of the run.
        dtype: What the adapter's weights are stored as.
    """

    def __init__(
        self, folder: Path, module: EpisodeModel, optimizer: ClippedAdamW, settings: Settings, dtype: mx.Dtype
    ):
        self._folder = folder
        self._module = module
        self._optimizer = optimizer
        self._settings = settings
        self._dtype = dtype
        self._waiting: tuple[Checkpoint, Adapter] | None = None
        # The steps in the last checkpoint; 0 where there is none.
        self.saved = 0

    @property
    def kept(self) -> str:
        """What can be gone on from, in words."""
        return f"the checkpoint after step {self.saved:,} is kept" if self.saved else "there is no checkpoint yet"

    @contextmanager
    def alone(self, resumed: bool) -> Iterator[None]:
        """Within it, nobody else keeps a run in the folder, which is made where there is none.

        Args:
            resumed: Whether the run is one that was begun there already.

        Raises:
            RunStoppedError: Somebody does, or has begun a run that is not this one, or nobody can tell.
        """
        with ExitStack() as stack:
            problem = self._take_lock(stack, resumed) if processes.is_first() else ""
            if processes.any_of(bool(problem))[0]:
                raise RunStoppedError(problem or "see the first process")
            yield

    def _take_lock(self, stack: ExitStack, resumed: bool) -> str:
        """What is in the way of a lock on the folder, or ""."""
        # Not the folder itself, which a session may be saved in.
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
            return f"a run was begun in {self._folder} meanwhile; name another folder"
        return ""

    @contextmanager
    def told_of_memory(self) -> Iterator[None]:
        """Within it, a step for which the machine has too little memory ends the run as other failures do."""
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
        """Put the run back to its last checkpoint, if there is one, and remove what killed processes left.

        Raises:
            ValueError: It is damaged, or of another adapter.
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
        return Progress() if checkpoint is None else checkpoint.progress

    def keep_if_sound(self, progress: Progress) -> None:
        """Keep the run as it is now, when the next step has shown that it is sound: weights that a step has spoiled
        may still be finite."""
        self._waiting = self._now(progress)

    def note_sound(self, done: int) -> None:
        """Note that the numbers of all steps up to this one are finite.

        Raises:
            RunStoppedError: What waited for it cannot be saved.
        """
        if self._waiting is not None and done > self._waiting[0].progress.iteration:
            self._write(*self._waiting)

    def keep(self, progress: Progress) -> None:
        """Keep the run as it is now.

        Raises:
            RunStoppedError: It cannot be saved, or a number is not finite; what was there stays.
        """
        self._write(*self._now(progress))

    def keep_best(self, progress: Progress) -> None:
        """Keep the adapter as it is now as the best one, beside the last.

        Raises:
            RunStoppedError: It cannot be saved.
        """
        adapter = self._now(progress)[1]
        self._save(lambda: adapter, self._folder / BEST_FOLDER, f"the best adapter, after step {progress.iteration},")

    def end_with_best(self) -> None:
        """Make the best adapter the one that the run ends with.

        Raises:
            RunStoppedError: There is none, or it cannot be saved.
        """
        self._save(lambda: load_adapter(self._folder / BEST_FOLDER), self._folder, "the best adapter")

    def _save(self, adapter: Callable[[], Adapter], folder: Path, what: str) -> None:
        problem = None
        if processes.is_first():
            try:
                save_adapter(adapter(), folder)
            except (OSError, ValueError, RuntimeError) as error:
                problem = error
        self._stop_where(problem, what)

    def _stop_where(self, problem: Exception | None, what: str) -> None:
        """Raise RunStoppedError in all processes where the first one has a problem."""
        if processes.any_of(problem is not None)[0]:
            reason = problem or "see the first process"
            raise RunStoppedError(f"{what} cannot be saved ({reason}); {self.kept}") from problem

    def _now(self, progress: Progress) -> tuple[Checkpoint, Adapter]:
        adapter = current_adapter(self._module.model)
        weights = {name: weight.astype(self._dtype) for name, weight in adapter.weights.items()}
        metadata = adapter.metadata | training_metadata(self._settings, adapter.metadata, progress)
        checkpoint = Checkpoint.of(self._module, self._optimizer, progress)
        return checkpoint, replace(adapter, weights=weights, metadata=metadata)

    def _write(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._waiting = None
        done, problem = checkpoint.progress.iteration, None
        if processes.is_first():
            try:
                checkpoint.check()
                # First, so that a run is not finished before its adapter is there.
                save_adapter(adapter, self._folder)
                checkpoint.save(self._folder)
            except (OSError, ValueError, RuntimeError) as error:
                problem = error
        self._stop_where(problem, f"step {done}")
        self.saved = done
