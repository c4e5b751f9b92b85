"""The records that an adapter is trained on, in mlx-lm's formats: `messages`, or `prompt` and `completion`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.segments import Message

SPLITS = ("train", "valid")
_COMPLETIONS = ("completion", "response")


@dataclass(frozen=True)
class Record:
    """One chat of a data set.

    Attributes:
        where: Its place, for messages to the user: file and line.
        messages: The chat; its last message is an answer.
        value: The part of that answer that matters, or "".
    """

    where: str
    messages: tuple[Message, ...]
    value: str = ""


class RecordError(ValueError):
    """A record that cannot be used; the message begins with its place."""


def find_file(folder: Path, split: str) -> Path | None:
    """The file of a split in a data folder, `train.jsonl` or `train.json`; None where there is none."""
    return next((path for ending in ("jsonl", "json") if (path := folder / f"{split}.{ending}").is_file()), None)


def read_file(path: Path) -> Iterator[Record | RecordError]:
    """The records of a file: JSON lines, or one JSON list. What cannot be used comes as an error in its place.

    Raises:
        ValueError: The file is no text, or no JSON list where its name ends with `.json`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); expected JSON") from None
    if path.suffix == ".json":
        yield from _read_list(path, text)
        return
    # Not splitlines(), which also cuts at characters that JSON allows within a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path.name} line {number}"
            try:
                yield make_record(where, json.loads(line))
            except json.JSONDecodeError as error:
                yield RecordError(f"{where} is no JSON ({error})")
            except RecordError as error:
                yield error


def _read_list(path: Path, text: str) -> Iterator[Record | RecordError]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); expected a list of records") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {_kind(rows)}; expected a list of records")
    yield from make_records(path.name, rows)


def make_records(source: str, rows: Iterable[object]) -> Iterator[Record | RecordError]:
    """The records of rows that were read already, the first of which is record 1."""
    for number, row in enumerate(rows, 1):
        try:
            yield make_record(f"{source} record {number}", row)
        except RecordError as error:
            yield error


def make_record(where: str, row: object) -> Record:
    """A record from what was read.

    Raises:
        RecordError: It has neither form.
    """
    if not isinstance(row, dict):
        raise RecordError(f"{where} is {_kind(row)}; expected an object")
    completion = next((name for name in _COMPLETIONS if name in row), None)
    if "messages" in row:
        messages = _messages(where, row["messages"])
    elif "prompt" in row and completion is not None:
        messages = _messages(
            where,
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[completion]}],
        )
    else:
        raise RecordError(f"{where} has {', '.join(row) or 'no fields'}; expected messages, or prompt and completion")
    return Record(where, messages, _value(where, row.get("value"), messages))


def _messages(where: str, found: object) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        raise RecordError(f"{where} has {_kind(found)} for messages; expected a list of messages")
    for number, message in enumerate(found):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise RecordError(f"{where} has a message {number} without a role and a text; expected both")
    return tuple({"role": message["role"], "content": message["content"]} for message in found)


def _value(where: str, found: object, messages: tuple[Message, ...]) -> str:
    if found is None:
        return ""
    if not isinstance(found, str) or found not in messages[-1]["content"]:
        raise RecordError(f"{where} has a value that is not in its last message; expected a part of the answer")
    return found


def _kind(found: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(found), "a number")
