"""Records of JSON files: read one record per line (JSON lines), a list or a single record; write JSON lines."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.files.atomic import new_file

Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


@dataclass(frozen=True)
class JsonRecord:
    """One record of a file.

    Attributes:
        place: The position in the file, counted from 1: "line 3" of JSON lines, "record 3" of a list.
        value: The parsed record; None if it is not valid JSON.
        problem: Why it is not valid JSON; empty if it is.
    """

    place: str
    value: Json
    problem: str = ""


def json_records(path: Path) -> Iterator[JsonRecord]:
    """Yield the records of a file in order, including those that are not valid JSON.

    A file whose first line is a complete JSON value other than a list is read as JSON lines.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a single list or object and not valid JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name a .json or .jsonl file")
    start = _first_line(path)
    first, broken = _parsed(start)
    if not broken and not isinstance(first, list):
        return json_lines(path)
    value, problem = _parsed(path.read_bytes())
    if not problem:
        return _of_value(value)
    if broken and (start.startswith(b"[") or start == b"{"):
        raise ValueError(f"{path} is {problem}; give valid JSON, or one record a line")
    return json_lines(path)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line.strip() for line in file if line.strip()), b"").removeprefix(codecs.BOM_UTF8)


def _of_value(value: Json) -> Iterator[JsonRecord]:
    records = value if isinstance(value, list) else [value]
    return (JsonRecord(f"record {number}", record) for number, record in enumerate(records, start=1))


def json_lines(path: Path) -> Iterator[JsonRecord]:
    """Yield the record of each line of a file, including those that are not valid JSON. Empty lines are left out.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield JsonRecord(f"line {number}", *_parsed(line.rstrip()))


def write_json_lines(path: Path, records: Iterable[object]) -> int:
    """Write a file with one record per line, and return the number of records.

    If this fails, an earlier file is unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    count = 0
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _parsed(text: bytes) -> tuple[Json, str]:
    """Return the value of a JSON text, and why it is not valid (empty if it is)."""
    try:
        return json.loads(text.decode("utf-8-sig")), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text else ""
        return None, f"not JSON ({error.msg}, {line}column {error.colno})"
    except RecursionError:
        return None, "JSON that is nested too deeply"
    except ValueError:
        return None, "JSON with a number of too many digits"
