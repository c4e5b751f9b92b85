"""Read the rows of data sets: files of JSON, JSON lines or Parquet, and data sets on the Hugging Face Hub.

Packages of the extra `evaluate` are imported only where they are needed.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.files.atomic import one_line
from mlx_deltamem.files.jsonl import Json, json_lines, json_records

Row = dict[str, Json]

ENDINGS = (".jsonl", ".json", ".parquet")


def file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for error messages: "file.jsonl row 3", counted from 1.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The path is a folder, the file is damaged or has another ending, or the package that reads Parquet
            is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file that ends with one of {', '.join(ENDINGS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name a file of rows")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends with {path.suffix or 'nothing'!r}; expected one of {', '.join(ENDINGS)}")
    values = _parquet(path) if path.suffix == ".parquet" else _json(path)
    for number, row in enumerate(values, 1):
        place = f"{path.name} row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{place} is {type(row).__name__}; expected an object")
        yield place, row


def folder_files(path: Path) -> list[Path]:
    """The data files in a folder and in its subfolder `data`, by name.

    Raises:
        FileNotFoundError: There is none.
    """
    files = [file for folder in (path, path / "data") for file in folder.glob("*") if file.suffix in ENDINGS]
    if not files:
        raise FileNotFoundError(f"there is no data file in {path}; expected files that end with {', '.join(ENDINGS)}")
    return sorted(files, key=lambda file: file.name)


def hub_rows(repo: str, split: str, files: str) -> Iterator[tuple[str, Row]]:
    """The rows of a part of a data set on the Hub, which is downloaded once; each row with its place.

    Args:
        repo: The data set, USER/NAME.
        split: The name of the part.
        files: The files of the part in the repo, for example "data/test-*.parquet". No other files are downloaded.

    Raises:
        FileNotFoundError: The data set does not exist, or the Hub cannot be reached.
        ValueError: The package `datasets` is not installed, or the Hub refused access.
    """
    datasets = evaluate_extra("datasets", f"the data set {repo}")
    with hub_errors(repo):
        try:
            # The repo's own checksums are of all parts.
            rows = datasets.load_dataset(repo, data_files={split: files}, split=split, verification_mode="no_checks")
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"cannot read the data set {repo} ({one_line(error)}); check its name and the network"
            ) from None
    for number, row in enumerate(rows, 1):
        yield f"{repo} {split} row {number}", row


def parse_json(place: str, text: bytes) -> Json:
    """Parse a JSON text.

    Args:
        place: The origin of the text, for error messages.
        text: The text in UTF-8.

    Raises:
        ValueError: The text is not valid JSON.
    """
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}); expected a JSON file") from None
    return value


def expect_object(value: Json) -> dict[str, Json]:
    """Return a JSON value that must be an object.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} instead of an object")
    return value


def expect_list(value: Json) -> list[Json]:
    """Return a JSON value that must be a list.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} instead of a list")
    return value


def expect_text(value: Json) -> str:
    """Return a JSON value that must be a text.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} instead of a text")
    return value


def evaluate_extra(module: str, purpose: str) -> ModuleType:
    """Import a module of the extra `evaluate`.

    Args:
        module: The name of the module, for example "nltk.stem.porter".
        purpose: The feature that needs it, for the error message.

    Raises:
        ValueError: The package is not installed.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{purpose} needs the package {package}, which is not installed: pip install 'mlx-deltamem[evaluate]'"
        )
    return importlib.import_module(module)


def _json(path: Path) -> Iterator[Json]:
    for record in json_lines(path) if path.suffix == ".jsonl" else json_records(path):
        if record.problem:
            raise ValueError(f"{path} {record.place} is {record.problem}; expected JSON")
        yield record.value


def _parquet(path: Path) -> Iterator[Json]:
    parquet = evaluate_extra("pyarrow.parquet", f"reading {path.name}")
    try:
        # One row at a time, because a row may have millions of characters.
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); expected Parquet") from None
