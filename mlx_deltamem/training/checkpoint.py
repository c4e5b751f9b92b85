"""Checkpoints of a run: all that its next step depends on, in one file that is there whole or not at all."""

import re
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_deltamem.files import new_file, remove_unfinished
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
        seconds: Time spent in steps.
    """

    iteration: int = 0
    seconds: float = 0.0


def save_checkpoint(folder: Path, module: EpisodeModel, optimizer: ClippedAdamW, progress: Progress) -> Path:
    """Write a checkpoint of a run into its folder and remove all but the last ones.

    Raises:
        ValueError: A weight is not finite; nothing is written.
    """
    weights = dict(tree_flatten(module.trainable_parameters()))
    if broken := [name for name, weight in weights.items() if not mx.isfinite(weight).all().item()]:
        raise ValueError(f"{broken[0]} holds NaN or Inf after step {progress.iteration}; the run cannot go on from it")
    arrays = {f"adapter.{name}": weight for name, weight in weights.items()}
    arrays |= {f"optimizer.{name}": array for name, array in tree_flatten(optimizer.state)}
    arrays |= {f"random.{index}": array for index, array in enumerate(mx.random.state)}
    target = folder / FOLDER / f"{progress.iteration:07d}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target)
    with new_file(target) as path:
        metadata = {"iteration": str(progress.iteration), "seconds": repr(progress.seconds)}
        mx.save_safetensors(str(path), arrays, metadata)
    for old in _checkpoints(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return target


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, module: EpisodeModel, optimizer: ClippedAdamW) -> Progress:
    """Put a run back to where it was.

    Raises:
        ValueError: The file is damaged, or of another adapter.
    """
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(arrays)
        progress = Progress(int(metadata["iteration"]), float(metadata["seconds"]))
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to go on from the checkpoint before it") from None
    parts = {"adapter": {}, "optimizer": {}, "random": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = array
    expected = {name: weight.shape for name, weight in tree_flatten(module.trainable_parameters())}
    if expected != {name: weight.shape for name, weight in parts["adapter"].items()}:
        raise ValueError(f"{path} is of another adapter than the one in training; delete it or name another folder")
    module.update(tree_unflatten(list(parts["adapter"].items())))
    optimizer.state = tree_unflatten(list(parts["optimizer"].items()))
    mx.random.state[:] = [parts["random"][str(index)] for index in range(len(parts["random"]))]
    return progress


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in (folder / FOLDER).glob("*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem))
