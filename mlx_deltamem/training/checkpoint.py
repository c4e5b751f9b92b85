"""Checkpoints: everything that the next step of a run depends on, in one file that is always complete."""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_deltamem.adapters.fingerprint import update_with_arrays
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.files.atomic import new_file, one_line, written_by_mlx
from mlx_deltamem.training import processes
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedOptimizer

FOLDER = "checkpoints"
# The newest checkpoint, and the one before in case the newest is damaged.
_KEPT = 2
_NAME = re.compile(r"(\d{7,})\.safetensors")


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        iteration: The number of steps done. It is also the position in the data, as the seed fixes the order.
        seconds: The time that the steps took.
        episodes: The number of training episodes.
        data: The fingerprint of the training episodes.
    """

    iteration: int = 0
    seconds: float = 0.0
    episodes: int = 0
    data: str = ""

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> "Progress":
        """Make a progress from its fields as texts."""
        return cls(int(texts["iteration"]), float(texts["seconds"]), int(texts["episodes"]), texts["data"])


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps. It shares the run's arrays, which MLX never changes in place.

    Attributes:
        progress: The progress of the run.
        arrays: The adapter's weights, the optimizer's state with the step of its schedule, and the random key.
        config: The adapter's configuration, as JSON.
    """

    progress: Progress
    arrays: Mapping[str, mx.array]
    config: str

    @classmethod
    def of(cls, module: EpisodeModel, optimizer: ClippedOptimizer, progress: Progress) -> "Checkpoint":
        """Make the checkpoint of a run's present state."""
        arrays = {f"adapter.{name}": weight for name, weight in _named_arrays(module.trainable_parameters()).items()}
        arrays |= {f"optimizer.{name}": array for name, array in _named_arrays(optimizer.state).items()}
        (arrays["random"],) = cast(list[mx.array], mx.random.state)
        return cls(progress, arrays, attachment_of(module.model).config.to_json())

    def restore(self, module: EpisodeModel, optimizer: ClippedOptimizer) -> None:
        """Put a run back into this state.

        Raises:
            ValueError: The checkpoint belongs to another adapter.
        """
        adapter, state = self._part("adapter"), self._part("optimizer")
        expected = {name: weight.shape for name, weight in _named_arrays(module.trainable_parameters()).items()}
        shapes = {name: weight.shape for name, weight in adapter.items()}
        if expected != shapes or self.config != attachment_of(module.model).config.to_json():
            raise ValueError(
                f"the checkpoint after step {self.progress.iteration} belongs to another adapter than this run; "
                "name another folder"
            )
        module.update(tree_unflatten(list(adapter.items())))
        optimizer.state = tree_unflatten(list(state.items()))
        high, low = (int(half) for half in np.array(self.arrays["random"]))
        mx.random.seed(high << 32 | low)

    def check(self) -> None:
        """Raise ValueError if a number is not finite. A run could not continue from such a checkpoint."""
        if broken := [name for name, array in self.arrays.items() if not mx.isfinite(array).all().item()]:
            raise ValueError(f"{broken[0]} holds NaN or Inf")

    def save(self, folder: Path) -> Path:
        """Write the checkpoint into a run's folder, and remove all but the newest ones.

        Raises:
            OSError: It cannot be written. The earlier checkpoints are still there.
        """
        target = folder / FOLDER / f"{self.progress.iteration:07d}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {name: str(value) for name, value in asdict(self.progress).items()} | {"config": self.config}
        metadata["checksum"] = _checksum(metadata, self.arrays)
        with new_file(target) as path, written_by_mlx(target):
            mx.save_safetensors(str(path), dict(self.arrays), metadata)
        for old in _checkpoints(folder)[:-_KEPT]:
            old.unlink(missing_ok=True)
        return target

    @classmethod
    def last(cls, folder: Path) -> "Checkpoint | None":
        """Read the newest checkpoint in the folder of the first process; None if there is none.

        Raises:
            ValueError: It is damaged.
        """
        found = _checkpoints(folder)
        path = found[-1] if found else folder / FOLDER
        (there,) = processes.any_of(processes.is_first() and bool(found))
        if not there:
            return None
        content = processes.from_first(path.read_bytes() if found else b"")
        try:
            loaded = mx.load(io.BytesIO(content), format="safetensors", return_metadata=True)
            arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
            mx.eval(arrays)
            if metadata.pop("checksum") != _checksum(metadata, arrays):
                raise ValueError("its checksum is wrong")
            return cls(Progress.read(metadata), arrays, metadata["config"])
        except (RuntimeError, KeyError, ValueError) as error:
            rest = "go on from the one before it" if len(found) > 1 else "begin again"
            raise ValueError(f"{path} is damaged ({one_line(error)}); delete it to {rest}") from None

    def _part(self, prefix: str) -> dict[str, mx.array]:
        return {
            name.removeprefix(f"{prefix}."): array
            for name, array in self.arrays.items()
            if name.startswith(f"{prefix}.")
        }


def remove_unfinished_checkpoints(folder: Path) -> None:
    """Remove the unfinished checkpoints of killed processes. No other process may be writing to the folder."""
    for path in (folder / FOLDER).glob(".*.safetensors"):
        path.unlink(missing_ok=True)


def _named_arrays(tree: object) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, mx.array]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    update_with_arrays(digest, dict(sorted(arrays.items())))
    return digest.hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in (folder / FOLDER).glob("*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem))
