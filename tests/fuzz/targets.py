"""A fuzz target for each reader: it reads bytes as a file, and accepts an error of one line that names the file."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from mlx_deltamem.adapters.card.card import make_card
from mlx_deltamem.adapters.card.folder import card_metadata
from mlx_deltamem.adapters.card.sections import shown_pictures
from mlx_deltamem.adapters.folder import NPZ_FILE, TORCH_FILE, load_adapter
from mlx_deltamem.adapters.npz import load_npz
from mlx_deltamem.adapters.publish import published_run
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.core.adapter import (
    CARD_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    Adapter,
)
from mlx_deltamem.core.config import CONFIG_FILE, DeltaMemConfig
from mlx_deltamem.evaluation.effects import sum_up
from mlx_deltamem.evaluation.records import JsonLines
from mlx_deltamem.files.jsonl import json_records
from mlx_deltamem.sessions.foreign.folder import SESSION_FILE, STATE_FILE, read_foreign_session
from mlx_deltamem.sessions.stored.file import _checksum, read_chat
from mlx_deltamem.training.monitor import Metrics
from mlx_deltamem.training.run_options import parse

Target = Callable[[bytes], None]

SEEDS = Path(__file__).parent / "seeds"
# The error about a configuration names all fields.
_MOST_CHARACTERS = 5000


class UnclearError(Exception):
    """A reader's error is not one line that names the file."""


@cache
def folder() -> Path:
    """The folder that all targets write into. It is deleted at the end; after a crash it holds the last input."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _reads(name: str, data: bytes, read: Callable[[Path], object], named: str | None = None) -> None:
    """Write the data into a file of this name, and read it; a ValueError or OSError must be one line with `named`."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        if len(text.splitlines()) != 1 or len(text) > _MOST_CHARACTERS or (named or path.name) not in text:
            raise UnclearError(f"{type(error).__name__}: {text[:300]!r}") from error


def _adapter_folder(name: str, file: str, data: bytes) -> None:
    place = folder() / name
    if not place.is_dir():
        place.mkdir()
        shutil.copy(SEEDS / "config" / "small.json", place / CONFIG_FILE)
    _reads(f"{name}/{file}", data, lambda path: load_adapter(path.parent), named=name)


def npz(data: bytes) -> None:
    """Arrays of the other MLX port."""
    _reads("a.npz", data, load_npz)


def npz_adapter(data: bytes) -> None:
    """An adapter folder of the other MLX port."""
    _adapter_folder("npz_adapter", NPZ_FILE, data)


def torch(data: bytes) -> None:
    """A `.pt` file."""
    _reads("a.pt", data, load_torch)


def torch_adapter(data: bytes) -> None:
    """An adapter folder of the reference."""
    _adapter_folder("torch_adapter", TORCH_FILE, data)


def safetensors(data: bytes) -> None:
    """An adapter folder of this package."""
    _adapter_folder("safetensors_adapter", WEIGHTS_FILE, data)


def config(data: bytes) -> None:
    """The configuration of an adapter."""
    _reads(CONFIG_FILE, data, DeltaMemConfig.load)


def session(data: bytes) -> None:
    """A session file."""
    _reads("chat.safetensors", data, read_chat)


@cache
def _entries() -> list:
    return mlx_lm_cache.load_prompt_cache(str(next((SEEDS / "session").glob("*.safetensors"))))


def session_json(data: bytes) -> None:
    """The JSON of a session file, which gets the right checksum."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    path = folder() / "text.safetensors"
    mlx_lm_cache.save_prompt_cache(str(path), _entries(), {"session": text, "checksum": _checksum(text, _entries())})
    _reads("again.safetensors", path.read_bytes(), read_chat)


def foreign_states(data: bytes) -> None:
    """The states of the other MLX port."""
    _reads("delta_state.npz", data, read_foreign_session)


def foreign_session(data: bytes) -> None:
    """The JSON of a session folder of the reference."""
    place = folder() / "foreign"
    if not place.is_dir():
        place.mkdir()
        shutil.copy(SEEDS / "foreign_states.pt", place / STATE_FILE)
    _reads(f"foreign/{SESSION_FILE}", data, lambda path: read_foreign_session(path.parent), named="foreign")


def metrics(data: bytes) -> None:
    """The metrics of a training run."""

    def read(path: Path) -> None:
        rows = Metrics(path.parent).rows()
        Metrics(path.parent).go_back(1)
        json.dumps([float(value) for row in rows for value in row.values() if value is not None])

    _reads(f"run/{METRICS_FILE}", data, read)


def records(data: bytes) -> None:
    """The records of an evaluation."""
    _reads("records.jsonl", data, JsonLines)


def measures(data: bytes) -> None:
    """The measures of an evaluation."""
    _reads("measures.jsonl", data, lambda path: sum_up(row for row in JsonLines(path).rows if "prompt_tokens" in row))


@cache
def _small_adapter() -> Adapter:
    place = folder() / "small"
    place.mkdir()
    shutil.copy(SEEDS / "config" / "small.json", place / CONFIG_FILE)
    shutil.copy(SEEDS / "safetensors" / "small.safetensors", place / WEIGHTS_FILE)
    adapter = load_adapter(place)
    return Adapter(adapter.config, adapter.weights, dict(adapter.metadata) | {"trained": "for 1 step"})


def _card_folder(name: str) -> Path:
    place = folder() / name
    if not place.is_dir():
        place.mkdir()
        _small_adapter()
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copy(folder() / "small" / file, place / file)
    return place


def card(data: bytes) -> None:
    """A model card."""

    def read(path: Path) -> None:
        card_metadata(path.parent)
        made = make_card(path.parent, _small_adapter())
        made.text.encode()
        shown_pictures(path.parent, made.text)

    _card_folder("card")
    _reads(f"card/{CARD_FILE}", data, read)


def results(data: bytes) -> None:
    """The results of an evaluation, as a model card shows them."""
    _card_folder("results")
    _reads(f"results/{RESULTS_FILE}", data, lambda path: make_card(path.parent, _small_adapter()).text.encode())


def options(data: bytes) -> None:
    """The YAML file of a training run's options."""
    _reads("options.yaml", data, lambda path: parse(path.read_bytes(), path))


def published_options(data: bytes) -> None:
    """The options of a training run that are published with an adapter."""
    _reads(f"published/{SETTINGS_FILE}", data, lambda path: published_run(path.parent))


def records_file(data: bytes) -> None:
    """Records of JSON in any form."""
    _reads("data.jsonl", data, lambda path: [record.place for record in json_records(path)])


TARGETS: dict[str, Target] = {
    each.__name__: each
    for each in (
        *(npz, npz_adapter, torch, torch_adapter, safetensors, config, session, session_json, foreign_states),
        *(foreign_session, metrics, records, measures, card, results, options, published_options, records_file),
    )
}


def seeds_of(name: str) -> list[bytes]:
    """The seeds of a target, in the order of their names. Some targets read the same kind of file."""
    shared = {
        "npz_adapter": "npz",
        "torch_adapter": "torch",
        "published_options": "options",
        "records_file": "records",
    }
    places = dict.fromkeys((name, shared.get(name, name)))
    return [path.read_bytes() for place in places for path in sorted((SEEDS / place).glob("*")) if path.is_file()]


def release() -> None:
    """Give back what MLX keeps between inputs, so that the memory of the process shows the readers alone."""
    mx.clear_cache()
