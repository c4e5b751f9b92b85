"""The rows of a data set: of a JSON, JSONL or Parquet file, or on the Hugging Face Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.evaluation.tasks.extras import evaluate_extra
from mlx_deltamem.files.jsonl import Json

Row = dict[str, Json]

ENDINGS = (".jsonl", ".json", ".parquet")


def file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for messages ("file.jsonl row 3", counted from 1).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder or damaged, it has another ending, or Parquet cannot be read here.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file that ends with one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends with {path.suffix or 'nothing'!r}; expected one of {', '.join(ENDINGS)}")
    read = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet}[path.suffix]
    for number, row in enumerate(read(path), 1):
        place = f"{path.name} row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place} is {type(row).__name__}; expected an object")
        yield place, row


def folder_files(path: Path) -> list[Path]:
    """The data files in a folder and in its folder `data`, by name.

    Raises:
        FileNotFoundError: There is none.
    """
    files = [file for folder in (path, path / "data") for file in folder.glob("*") if file.suffix in ENDINGS]
    if not files:
        raise FileNotFoundError(f"there is no file of data in {path}; expected some that end with {', '.join(ENDINGS)}")
    return sorted(files, key=lambda file: file.name)


def hub_rows(repo: str, split: str, files: str) -> Iterator[tuple[str, Row]]:
    """The rows of a part of a data set on the Hub, which is downloaded once.

    Args:
        repo: USER/NAME.
        split: The part's name.
        files: Where it is in the repo, for example "data/test-*.parquet"; nothing else is downloaded.

    Raises:
        FileNotFoundError: There is no such data set, or the Hub cannot be reached.
        ValueError: The package `datasets` is not installed, or the Hub refused access.
    """
    datasets = evaluate_extra("datasets", f"the data set {repo}")
    with hub_errors(repo):
        try:
            # A part is not what the repo's own checks are for.
            rows = datasets.load_dataset(repo, data_files={split: files}, split=split, verification_mode="no_checks")
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(f"the data set {repo} cannot be had ({' '.join(str(error).split())})") from None
    for number, row in enumerate(rows, 1):
        yield f"{repo} {split} row {number}", row


def _json_lines(path: Path) -> Iterator[Json]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parsed(f"{path} line {number}", line)


def _json_list(path: Path) -> Iterator[Json]:
    rows = parsed(str(path), path.read_bytes())
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}; expected a list of rows")
    yield from rows


def _parquet(path: Path) -> Iterator[Json]:
    parquet = evaluate_extra("pyarrow.parquet", f"reading {path.name}")
    try:
        # A row may hold millions of characters.
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); expected Parquet") from None


def parsed(place: str, text: bytes) -> Json:
    """What a JSON text holds.

    Args:
        place: Where it is, for the error.
        text: The text, in UTF-8.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON ({error})") from None
