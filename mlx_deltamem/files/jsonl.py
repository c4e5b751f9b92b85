"""Records of JSON files: read one record per line (JSON lines), a list or a single record; write JSON lines.

Anyone may have written a file. So the size of a line and of a file, the depth of a value and the number of its parts
are bounded: a few bytes of JSON can take a hundred times as many bytes of memory. An object with a name that stands
there twice is refused: programs disagree on which value counts.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.files.text import text_problem

LONGEST_LINE, LARGEST_FILE = 64 << 20, 512 << 20
# Programs that walk through a value, like `json.dumps`, call themselves at each level.
_DEEPEST = 100
# Values in a line and in a file: a value takes 60 bytes of memory or more.
_MOST_VALUES, _MOST_VALUES_OF_FILE = 1_000_000, 20_000_000
_PIECE = 1 << 20
_MOST_SHOWN = 60

_OPENING, _CLOSING = b"[{", b"]}"
# A string is skipped in one step, also if its end is missing: a second look at it would take quadratic time.
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{},]', re.DOTALL)

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
        ValueError: The file is a single list or object and not valid JSON, or larger than `LARGEST_FILE`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name a .json or .jsonl file")
    start = _first_line(path)
    first, broken = parsed_json(start, _MOST_VALUES)
    if not start.startswith((b"[", b"{")) or (not broken and not isinstance(first, list)):
        return json_lines(path)
    value, problem = _parsed_file(path)
    if not problem:
        return _of_value(value)
    if broken and (start.startswith(b"[") or start == b"{"):
        raise ValueError(f"{path} is {problem}; give valid JSON, or one record a line")
    return json_lines(path)


def read_json(path: Path) -> Json:
    """Return the value of a file with a single JSON text.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid JSON, larger than `LARGEST_FILE`, too deep, or has too many values; or it is a pipe,
            a socket or a device.
    """
    value, problem = _parsed_file(path)
    if problem:
        raise ValueError(f"{path} is {problem}; expected a JSON file")
    return value


def parsed_json(text: bytes, most_values: int = _MOST_VALUES_OF_FILE) -> tuple[Json, str]:
    """Return the value of a JSON text in UTF-8, and why it has none (empty if it has one).

    Args:
        text: The text. A byte order mark at its beginning is left out.
        most_values: The most values that it may have, with those in lists and objects.
    """
    if problem := excess(text, most_values):
        return None, problem
    try:
        return cast(Json, _DECODER.decode(text.decode("utf-8-sig"))), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text else ""
        return None, f"not JSON ({error.msg}, {line}column {error.colno})"
    except RecursionError:
        return None, "JSON that is nested too deeply"
    except ValueError as error:
        twice = isinstance(error, _TwiceError)
        return None, f"JSON with {error if twice else 'a number of too many digits'}"


def kind_of(value: object) -> str:
    """The kind of a JSON value, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return "an empty list" if value == [] else kinds.get(type(value), "a number")


def _parsed_file(path: Path) -> tuple[Json, str]:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        return None, f"a JSON text of {size:,} bytes, {LARGEST_FILE:,} at most"
    return parsed_json(read_file(path, LARGEST_FILE))


class _TwiceError(ValueError):
    """A name stands twice in a JSON object. The message says which."""


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        short = name if len(name) <= _MOST_SHOWN else name[:_MOST_SHOWN] + "..."
        raise _TwiceError(f"{short!r} twice (leave one of them out)")
    return value


# One decoder, because `json.loads` makes a new one for each text that has a hook.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def excess(text: bytes, most_values: int = _MOST_VALUES_OF_FILE, around: int = 0) -> str:
    """Why a JSON text is too large to be parsed; empty if it is not.

    Args:
        text: The text, in UTF-8.
        most_values: As in `parsed_json`.
        around: The number of lists and objects that a file will put around the value.
    """
    opening = text.count(b"[") + text.count(b"{")
    if around + opening <= _DEEPEST and opening + text.count(b",") < most_values:
        return ""
    depth, values = around, 1
    for found in _MARK.finditer(text):
        mark = text[found.start()]
        if mark in _OPENING:
            depth += 1
            values += 1
        elif mark in _CLOSING:
            depth -= 1
        elif mark == ord(","):
            values += 1
        if depth > _DEEPEST:
            return f"JSON that is nested too deeply, {_DEEPEST - around} levels at most"
        if values > most_values:
            return f"JSON with more than {most_values:,} values"
    return ""


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line.strip() for line, _ in _lines(file) if line.strip()), b"").removeprefix(codecs.BOM_UTF8)


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file, and whether each was cut because it is longer than `LONGEST_LINE`."""
    while line := file.readline(LONGEST_LINE + 1):
        cut = len(line) > LONGEST_LINE and not line.endswith(b"\n")
        if cut:
            while (more := file.readline(_PIECE)) and not more.endswith(b"\n"):
                pass
        yield line, cut


def _of_value(value: Json) -> Iterator[JsonRecord]:
    records = value if isinstance(value, list) else [value]
    return (JsonRecord(f"record {number}", record) for number, record in enumerate(records, start=1))


def json_lines(path: Path) -> Iterator[JsonRecord]:
    """Yield the record of each line of a file, including those that are not valid JSON. Empty lines are left out.

    Raises:
        OSError: The file cannot be read, or is not a file.
    """
    # Opening a named pipe would wait for a writer.
    if path.exists() and not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name a file with one JSON record a line")
    with path.open("rb") as file:
        for number, (line, cut) in enumerate(_lines(file), start=1):
            if cut:
                yield JsonRecord(f"line {number}", None, f"longer than {LONGEST_LINE:,} bytes")
            elif line.strip():
                yield JsonRecord(f"line {number}", *parsed_json(line.rstrip(), _MOST_VALUES))


def write_json_lines(path: Path, records: Iterable[object]) -> int:
    """Write a file with one record per line, and return the number of records.

    If this fails, an earlier file is unchanged.

    Raises:
        OSError: The file cannot be written.
        ValueError: A record has a text with half a character, which UTF-8 cannot encode.
    """
    count = 0
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False)
            try:
                file.write(line + "\n")
            except UnicodeEncodeError:
                kind, detail = text_problem(line)
                raise ValueError(f"record {count + 1} for {path} has {kind} ({detail}); expected text") from None
            count += 1
    return count
