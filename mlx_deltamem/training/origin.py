"""Where a trained adapter came from: what its file and its card tell, and what a resumed run is held against."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.core.adapter import METRICS_FILE, SETTINGS_FILE, changed
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.settings import PLACES, Settings

_DIGITS = 16


def public_name(place: str) -> str:
    """The name of a model, a data set or an adapter that may be published: of a folder, no more than its own."""
    return place if is_repo_name(place) else Path(place).name


def published_run(folder: Path) -> dict[str, bytes]:
    """What may be published of the run in a folder, by file name: its metrics, and its options without paths.

    Raises:
        ValueError: The options are damaged.
    """
    settings, metrics = folder / SETTINGS_FILE, folder / METRICS_FILE
    contents = {SETTINGS_FILE: _without_paths(settings)} if settings.is_file() else {}
    return contents | ({METRICS_FILE: metrics.read_bytes()} if metrics.is_file() else {})


def _without_paths(path: Path) -> bytes:
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        options |= {name: public_name(options[name]) for name in PLACES if options.get(name)}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({problem}); expected the options of a run, or no such file") from None
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode()


def training_metadata(settings: Settings, earlier: Mapping[str, str], progress: Progress) -> dict[str, str]:
    """What an adapter's file is to tell of its training; the same for the same run, to the bit.

    Args:
        settings: Of the run.
        earlier: What is told of the adapter that the run began with.
        progress: How far the run is.
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
    """A short text that tells one training set from another."""
    digest = hashlib.sha256()
    for episode in episodes:
        spans = [(each.answer, each.value, each.written, each.target, each.weight) for each in episode.questions]
        digest.update(repr((episode.written, episode.turns, spans)).encode())
        history = episode.history
        texts = (history.ids, history.message_ids, *(question.ids for question in episode.questions))
        digest.update(np.concatenate([np.array(ids, np.int32) for ids in texts]).tobytes())
        digest.update(repr([len(ids) for ids in texts]).encode())
    return digest.hexdigest()[:_DIGITS]
