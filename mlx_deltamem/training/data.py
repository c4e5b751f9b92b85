"""The data of a run: a folder with `train.jsonl` and perhaps `valid.jsonl`, or a data set on the Hub."""

import importlib.util
from collections.abc import Iterator

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files import user_path
from mlx_deltamem.hub import is_repo_name
from mlx_deltamem.hub_errors import hub_errors
from mlx_deltamem.training.episodes import Counts, Episode, EpisodeMaker
from mlx_deltamem.training.records import SPLITS, Record, RecordError, find_file, make_records, read_file
from mlx_deltamem.training.settings import Settings

ON_ERROR = ("stop", "skip")


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
        records = _records(settings.data, split)
        maker = EpisodeMaker(tokenizer, settings.rules, context=settings.terms.teacher_kl > 0)
        episodes = maker.episodes(_stopping(records) if on_error == "stop" else records)
        if split == "train" and not episodes:
            raise ValueError(f"{settings.data} has no training episode ({_summary(maker.counts)}); expected some")
        if on_error == "stop" and maker.counts.errors:
            raise ValueError(f"{maker.counts.errors[0]} (--on-error skip leaves such records out)")
        loaded[split] = (episodes, maker.counts)
    return loaded


def _records(data: str, split: str) -> Iterator[Record | RecordError]:
    folder = user_path(data)
    if folder.is_dir():
        path = find_file(folder, split)
        if path is None and split == "train":
            raise FileNotFoundError(f"{folder} has no train.jsonl (or train.json); expected a folder of records")
        return iter(()) if path is None else read_file(path)
    if folder.exists():
        raise ValueError(f"{folder} is a file; expected the folder that train.jsonl is in")
    if not is_repo_name(data):
        raise FileNotFoundError(f"there is no folder {folder}; expected one with train.jsonl, or a data set on the Hub")
    return _hub_records(data, split)


def _hub_records(name: str, split: str) -> Iterator[Record | RecordError]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{name} is a data set on the Hub, which needs: pip install 'mlx-deltamem[datasets]'")
    datasets = importlib.import_module("datasets")
    with hub_errors(name):
        try:
            splits = datasets.load_dataset(name)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"there is no folder and no data set {name} ({error})") from None
    if split not in splits:
        if split == "train":
            raise ValueError(f"{name} has the splits {', '.join(splits)}; expected one named train")
        return iter(())
    return make_records(f"{name} {split}", splits[split])


def _stopping(records: Iterator[Record | RecordError]) -> Iterator[Record | RecordError]:
    for record in records:
        if isinstance(record, RecordError):
            raise ValueError(f"{record} (--on-error skip leaves such records out)")
        yield record


def _summary(counts: Counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.rows()) or "no records"
