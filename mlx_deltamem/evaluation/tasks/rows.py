"""Read the rows of data sets: files of JSON, JSON lines or Parquet, and data sets on the Hugging Face Hub.

Packages of the extra `evaluate`, and the client of the Hub, are imported only where they are needed.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mlx_deltamem.evaluation.extras import extra_module
from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.files.atomic import one_line
from mlx_deltamem.files.fields import Row
from mlx_deltamem.files.jsonl import Json, JsonRecord, json_lines, json_records, kind_of, parsed_json

ENDINGS = (".jsonl", ".json", ".parquet")


def file_rows(path: Path, left_out: LeftOut) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for error messages: "file.jsonl row 3", counted from 1.

    Args:
        path: The file.
        left_out: Counts the rows that are not objects, and the lines that are not JSON.

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
    records = _parquet(path) if path.suffix == ".parquet" else _json(path)
    for number, record in enumerate(records, 1):
        place = f"{path.name} row {number}"
        if record.problem:
            left_out.add(f"{place} ({record.place}) is {record.problem}")
        elif isinstance(record.value, dict):
            yield place, record.value
        else:
            left_out.add(f"{place} is {kind_of(record.value)}, expected an object")


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
    from mlx_deltamem.adapters.hub_errors import hub_errors

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
        ValueError: The text is not valid JSON, or too deep or too large: see `files.jsonl`.
    """
    value, problem = parsed_json(text)
    if problem:
        raise ValueError(f"{place} is {problem}; expected a JSON file")
    return value


def evaluate_extra(module: str, purpose: str) -> ModuleType:
    """Import a module of the extra `evaluate`.

    Args:
        module: The name of the module, for example "nltk.stem.porter".
        purpose: The feature that needs it, for the error message.

    Raises:
        ValueError: The package is not installed.
    """
    return extra_module(module, purpose, "evaluate")


def _json(path: Path) -> Iterator[JsonRecord]:
    return json_lines(path) if path.suffix == ".jsonl" else json_records(path)


def _parquet(path: Path) -> Iterator[JsonRecord]:
    parquet = evaluate_extra("pyarrow.parquet", f"reading {path.name}")
    try:
        # One row at a time, because a row may have millions of characters.
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1):
            yield from (JsonRecord("", row) for row in batch.to_pylist())
    # Arrow's exceptions of damaged files are of these kinds.
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); expected Parquet") from None
