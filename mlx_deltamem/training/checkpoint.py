"""Checkpoints of a run: all that its next step depends on, in one file that is there whole or not at all."""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_deltamem.adapters.fingerprint import update_with_arrays
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.files.atomic import new_file, one_line
from mlx_deltamem.training import processes
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedAdamW

FOLDER = "checkpoints"
# The last one and the one before.
_KEPT = 2
_NAME = re.compile(r"(\d{7,})\.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        iteration: Steps done; the data's position too, since the order of batches depends on the seed alone.
        seconds: The time they took.
        episodes: How many the training data has.
        data: The fingerprint of the training data.
    """

    iteration: int = 0
    seconds: float = 0.0
    episodes: int = 0
    data: str = ""

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> "Progress":
        """From its fields as texts."""
        return cls(int(texts["iteration"]), float(texts["seconds"]), int(texts["episodes"]), texts["data"])


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps. MLX's arrays never change, so that it costs no copy and stays as it is.

    Attributes:
        progress: How far it is.
        arrays: The adapter's weights, the optimizer's state with the schedule's step, and the random key.
        config: The adapter's configuration, as JSON.
    """

    progress: Progress
    arrays: Mapping[str, mx.array]
    config: str

    @classmethod
    def of(cls, module: EpisodeModel, optimizer: ClippedAdamW, progress: Progress) -> "Checkpoint":
        """What a run is just now."""
        arrays = {f"adapter.{name}": weight for name, weight in tree_flatten(module.trainable_parameters())}
        arrays |= {f"optimizer.{name}": array for name, array in tree_flatten(optimizer.state)}
        (arrays["random"],) = mx.random.state
        return cls(progress, arrays, attachment_of(module.model).config.to_json())

    def restore(self, module: EpisodeModel, optimizer: ClippedAdamW) -> None:
        """Put a run back to it.

        Raises:
            ValueError: It is of another adapter.
        """
        adapter, state = self._part("adapter"), self._part("optimizer")
        expected = {name: weight.shape for name, weight in tree_flatten(module.trainable_parameters())}
        shapes = {name: weight.shape for name, weight in adapter.items()}
        if expected != shapes or self.config != attachment_of(module.model).config.to_json():
            raise ValueError(
                f"the checkpoint after step {self.progress.iteration} is of another adapter than this one; "
                "name another folder"
            )
        module.update(tree_unflatten(list(adapter.items())))
        optimizer.state = tree_unflatten(list(state.items()))
        high, low = self.arrays["random"].tolist()
        mx.random.seed(high << 32 | low)

    def check(self) -> None:
        """Raise ValueError where a number is not finite, so that a run could not go on from it."""
        if broken := [name for name, array in self.arrays.items() if not mx.isfinite(array).all().item()]:
            raise ValueError(f"{broken[0]} holds NaN or Inf")

    def save(self, folder: Path) -> Path:
        """Write it into a run's folder and remove all but the last ones.

        Raises:
            OSError: It cannot be written; those that are there stay.
        """
        target = folder / FOLDER / f"{self.progress.iteration:07d}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {name: str(value) for name, value in asdict(self.progress).items()} | {"config": self.config}
        metadata["checksum"] = _checksum(metadata, self.arrays)
        with new_file(target) as path:
            mx.save_safetensors(str(path), dict(self.arrays), metadata)
        for old in _checkpoints(folder)[:-_KEPT]:
            old.unlink(missing_ok=True)
        return target

    @classmethod
    def last(cls, folder: Path) -> "Checkpoint | None":
        """The newest checkpoint in the folder of a run's first process, if there is one.

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
            arrays, metadata = mx.load(io.BytesIO(content), format="safetensors", return_metadata=True)
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
    """Remove what killed processes left of checkpoints; nobody may be writing one now."""
    for path in (folder / FOLDER).glob(".*.safetensors"):
        path.unlink(missing_ok=True)


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, mx.array]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    update_with_arrays(digest, dict(sorted(arrays.items())))
    return digest.hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in (folder / FOLDER).glob("*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem))
