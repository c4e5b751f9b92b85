"""Prepares a training run: loads its model with the adapter, and makes episodes of its data."""

import importlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.card.folder import load_with_card
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import first_line, hub_errors
from mlx_deltamem.adapters.loading import LoadOptions, load
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attach_adapter, attached_attention
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import (
    TEST,
    TRAIN,
    VALID,
    Record,
    RecordError,
    find_file,
    read_file,
    records_of_rows,
)
from mlx_deltamem.training.settings import Settings

# The names of the splits in data sets on the Hub.
_HUB_NAMES = {TRAIN: ("train",), VALID: ("valid", "validation"), TEST: ("test",)}
_ENDINGS = ("jsonl", "json")


def prepare_model(settings: Settings, trust_remote_code: bool = False) -> tuple[nn.Module, TokenizerWrapper]:
    """Load the backbone of a run with the adapter that it starts from. The same settings give the same weights.

    Raises:
        OSError: The model or the adapter does not exist or cannot be read.
        ValueError: They do not fit together, or the adapter corrects nothing.
    """
    options: LoadOptions = {}
    if trust_remote_code:
        options = {"tokenizer_config": {"trust_remote_code": True}, "trust_remote_code": True}
    # With its card, so that the card of the trained adapter keeps the licence.
    start = load_with_card(settings.start) if settings.start else None
    model, tokenizer = load(settings.model, start, **options)
    mx.random.seed(settings.schedule.seed)
    if not settings.start:
        attach_adapter(model, settings.adapter)
        if settings.schedule.tie_output:
            tie_output(model)
    if not attachment_of(model).config.delta_heads:
        raise ValueError(
            f"{settings.start} has no delta_heads, so it corrects nothing and cannot be trained; name another adapter"
        )
    return model, tokenizer


def tie_output(model: nn.Module) -> None:
    """Set each layer's value projection to a random one, and the output's correction head to its transpose.

    The rows of the value projection have a mean norm of 1, and the correction head is scaled by `online_gain`. A token
    that was written is then read back as its projection onto these rows, so that a reply leans towards what was
    written from the first step on. Training has to find when and how much, but not in which directions.

    Raises:
        ValueError: The model has no adapter, or the adapter does not correct the output, or the attention's input and
            output have different widths.
    """
    config = attachment_of(model).config
    if "o" not in config.delta_heads:
        raise ValueError(f"delta_heads are {' '.join(config.delta_heads) or 'none'}; --tie-output needs o among them")
    for attention in attached_attention(model).values():
        layer_memory: DeltaMemory = attention.delta_mem
        width, hidden = layer_memory.memory_v_proj.shape
        if layer_memory.delta_o_proj.shape[0] != hidden:
            wide = layer_memory.delta_o_proj.shape[0]
            raise ValueError(f"the output is {wide} wide and the input {hidden}; leave out --tie-output")
        values = mx.random.normal((width, hidden)) / math.sqrt(hidden)
        layer_memory.memory_v_proj = values
        layer_memory.delta_o_proj = values.T * config.online_gain
        mx.eval(layer_memory.parameters())


def freeze_all_but_adapter(model: nn.Module) -> None:
    """Make only the adapter's weights trainable, and convert them to float32."""
    model.freeze()
    for attention in attached_attention(model).values():
        attention.delta_mem.update(tree_map(lambda weight: weight.astype(mx.float32), attention.delta_mem.parameters()))
        attention.delta_mem.unfreeze()


def load_episodes(
    settings: Settings, tokenizer: TokenizerWrapper, on_error: str, splits: Sequence[str] = (TRAIN, VALID)
) -> dict[str, tuple[list[Episode], Counts]]:
    """Load the data of a run: a folder with `train.jsonl` and perhaps others, or a data set on the Hub.

    A data set with such files at its top level is read without the `datasets` library; others need it.

    Args:
        settings: The run's settings.
        tokenizer: The backbone's tokenizer.
        on_error: What to do with an unusable record: `stop` raises an error, `skip` counts the record.
        splits: The splits to load, of `train`, `valid` and `test`. All but `valid` must be there.

    Returns:
        For each split, the episodes and the counts of the records.

    Raises:
        FileNotFoundError: The data does not exist, or lacks a split.
        ValueError: A record is unusable, or no episode of a split is left.
    """
    loaded = {}
    for split in splits:
        # A test has no teacher.
        context = settings.terms.teacher_kl > 0 and split != TEST
        maker = EpisodeMaker(tokenizer, settings.rules, context, strict=on_error == "stop")
        try:
            episodes = maker.episodes(_records(settings.data, split))
        except RecordError as error:
            raise ValueError(f"{error} (--on-error skip leaves such records out)") from None
        if split != VALID and not episodes:
            kind = "training" if split == TRAIN else split
            raise ValueError(f"{settings.data} has no {kind} episode ({_summary(maker.counts)}); expected some")
        loaded[split] = (episodes, maker.counts)
    return loaded


def _records(data: str, split: str) -> Iterable[Record | RecordError]:
    folder = user_path(data)
    if folder.is_dir():
        path = find_file(folder, split)
        if path is None and split != VALID:
            raise FileNotFoundError(f"{folder} has no {split}.jsonl (or {split}.json); expected a folder of records")
        return () if path is None else read_file(path)
    if folder.exists():
        raise ValueError(f"{folder} is a file; expected the folder of train.jsonl and perhaps valid.jsonl")
    if not is_repo_name(data):
        raise FileNotFoundError(f"there is no folder {folder}; expected one with train.jsonl, or a data set on the Hub")
    return _hub_records(data, split)


def _hub_records(name: str, split: str) -> Iterable[Record | RecordError]:
    """The records of a split of a data set on the Hub: from its files, or from the `datasets` library."""
    has_library = importlib.util.find_spec("datasets") is not None
    # The file of a test is downloaded only where a test is wanted.
    wanted = {*_HUB_NAMES[TRAIN], *_HUB_NAMES[VALID], *_HUB_NAMES[split]}
    # The card is among the files, since huggingface_hub warns if no file matches.
    files = ["README.md", *(f"{each}.{ending}" for each in sorted(wanted) for ending in _ENDINGS)]
    try:
        with hub_errors(name):
            folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=files))
    except FileNotFoundError:
        # The library may have the data set in its own cache.
        if not has_library:
            raise
    else:
        path = next(filter(None, (find_file(folder, each) for each in _HUB_NAMES[split])), None)
        if path is not None:
            return read_file(path)
        if split == VALID and find_file(folder, TRAIN) is not None:
            return ()
    if not has_library:
        raise ValueError(
            f"the data set {name} has no {split}.jsonl (or {split}.json), and for other files it needs: "
            "pip install 'mlx-deltamem[datasets]'"
        )
    return _library_records(name, split)


def _library_records(name: str, split: str) -> Iterator[Record | RecordError]:
    # The library is optional, and takes long to import.
    datasets = importlib.import_module("datasets")
    with hub_errors(name):
        try:
            splits = datasets.load_dataset(name)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"there is no folder and no data set {name} ({first_line(error)})") from None
        # RuntimeError: the data set is a program, which the library does not run.
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            raise ValueError(f"the data set {name} cannot be read ({first_line(error)}); try another one") from None
    found = next((each for each in _HUB_NAMES[split] if each in splits), None)
    if found is None and split != VALID:
        raise ValueError(f"{name} has the splits {', '.join(splits)}; expected one named {split}")
    return records_of_rows(f"{name} {found}", () if found is None else splits[found])


def _summary(counts: Counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.rows()) or "no records"
