"""The data of a run: a folder with `train.jsonl` and perhaps `valid.jsonl`, or a data set on the Hub.

A data set with such files at its top needs no library; of any other the `datasets` library makes splits of rows.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import first_line, hub_errors
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import SPLITS, Record, RecordError, find_file, read_file, records_of_rows
from mlx_deltamem.training.settings import Settings

ON_ERROR = ("stop", "skip")
# What data sets on the Hub call a split.
_HUB_NAMES = {"train": ("train",), "valid": ("valid", "validation")}
# With the card, since the client warns where it finds none of them.
_HUB_FILES = [
    "README.md",
    *(f"{name}.{ending}" for names in _HUB_NAMES.values() for name in names for ending in ("jsonl", "json")),
]


def load_episodes(
    settings: Settings, tokenizer: TokenizerWrapper, on_error: str
) -> dict[str, tuple[list[Episode], Counts]]:
    """The episodes of a run's data by split, `train` and `valid`, and what became of the records.

    Args:
        settings: Say where the data is and how chats become episodes.
        tokenizer: Of the backbone.
        on_error: What to do with a record that cannot be used: `stop` with an error, or `skip` it and count it.

    Raises:
        FileNotFoundError: There is no such data, or no training data in it.
        ValueError: A record cannot be used, or no episode is left.
    """
    loaded = {}
    for split in SPLITS:
        context = settings.terms.teacher_kl > 0
        maker = EpisodeMaker(tokenizer, settings.rules, context, strict=on_error == "stop")
        try:
            episodes = maker.episodes(_records(settings.data, split))
        except RecordError as error:
            raise ValueError(f"{error} (--on-error skip leaves such records out)") from None
        if split == "train" and not episodes:
            raise ValueError(f"{settings.data} has no training episode ({_summary(maker.counts)}); expected some")
        loaded[split] = (episodes, maker.counts)
    return loaded


def _records(data: str, split: str) -> Iterable[Record | RecordError]:
    folder = user_path(data)
    if folder.is_dir():
        path = find_file(folder, split)
        if path is None and split == "train":
            raise FileNotFoundError(f"{folder} has no train.jsonl (or train.json); expected a folder of records")
        return () if path is None else read_file(path)
    if folder.exists():
        raise ValueError(f"{folder} is a file; expected the folder of train.jsonl and perhaps valid.jsonl")
    if not is_repo_name(data):
        raise FileNotFoundError(f"there is no folder {folder}; expected one with train.jsonl, or a data set on the Hub")
    return _hub_records(data, split)


def _hub_records(name: str, split: str) -> Iterable[Record | RecordError]:
    """The records of a split of a data set on the Hub: of its files where they are as in a folder here, else as the
    `datasets` library has them."""
    has_library = importlib.util.find_spec("datasets") is not None
    try:
        with hub_errors(name):
            folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=_HUB_FILES))
    except FileNotFoundError:
        # The library has a cache of its own.
        if not has_library:
            raise
    else:
        if find_file(folder, "train") is not None:
            path = next(filter(None, (find_file(folder, each) for each in _HUB_NAMES[split])), None)
            return () if path is None else read_file(path)
    if not has_library:
        raise ValueError(
            f"the data set {name} has no train.jsonl (or train.json), and for other files it needs: "
            "pip install 'mlx-deltamem[datasets]'"
        )
    return _library_records(name, split)


def _library_records(name: str, split: str) -> Iterator[Record | RecordError]:
    # Not at the top: it is optional, and slow to import.
    datasets = importlib.import_module("datasets")
    with hub_errors(name):
        try:
            splits = datasets.load_dataset(name)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"there is no folder and no data set {name} ({first_line(error)})") from None
        # The last one where it comes as a program, which is not run.
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            raise ValueError(f"the data set {name} cannot be read ({first_line(error)}); try another one") from None
    found = next((each for each in _HUB_NAMES[split] if each in splits), None)
    if found is None and split == "train":
        raise ValueError(f"{name} has the splits {', '.join(splits)}; expected one named train")
    return records_of_rows(f"{name} {found}", () if found is None else splits[found])


def _summary(counts: Counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.rows()) or "no records"
