"""Records of a JSON file: one a line, a list of them, or a single one."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


@dataclass(frozen=True)
class JsonRecord:
    """A record of a file.

    Attributes:
        place: Where it is: "line 3" of a file with a record a line, "record 3" of a list; counted from 1.
        value: What it holds; None if it is broken.
        problem: What is wrong with it, empty if nothing is.
    """

    place: str
    value: Json
    problem: str = ""


def json_records(path: Path) -> Iterator[JsonRecord]:
    """Yield the records of a file, those that are no JSON too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is one JSON text, and a broken one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name a .json or .jsonl file")
    start = _first_line(path)
    first, broken = _parsed(start)
    if not broken and not isinstance(first, list):
        return _of_lines(path)
    value, problem = _parsed(path.read_bytes())
    if not problem:
        return _of_value(value)
    if broken and (start.startswith(b"[") or start == b"{"):
        raise ValueError(f"{path} is {problem}; give valid JSON, or one record a line")
    return _of_lines(path)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line.strip() for line in file if line.strip()), b"").removeprefix(codecs.BOM_UTF8)


def _of_value(value: Json) -> Iterator[JsonRecord]:
    records = value if isinstance(value, list) else [value]
    return (JsonRecord(f"record {number}", record) for number, record in enumerate(records, start=1))


def _of_lines(path: Path) -> Iterator[JsonRecord]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield JsonRecord(f"line {number}", *_parsed(line.rstrip()))


def _parsed(text: bytes) -> tuple[Json, str]:
    """Return what a JSON text holds and what is wrong with it."""
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
