"""Reads training records in mlx-lm's formats: `messages`, or `prompt` and `completion`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.files.fields import given_items
from mlx_deltamem.files.jsonl import json_records, kind_of
from mlx_deltamem.files.text import check_text, text_problem
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.writing import WRITES

# The files of a data set: to train on, to watch a run by, and to test an adapter with.
TRAIN, VALID, TEST = ("train", "valid", "test")
# The reference calls a completion `response`.
_COMPLETIONS = ("completion", "response")
# What an answer is trained on: on itself alone, or on the frozen model's prediction.
ANSWER, FROZEN = TARGETS = ("answer", "frozen")
_LONGEST_LIST = 100
_WEIGHTS = (1e-6, 1e6)
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Record:
    """One chat of a data set.

    Attributes:
        where: The place for error messages: file and line.
        messages: The chat. The last message is an answer.
        value: The part of the last answer that matters, or "".
        recent: The number of messages before an answer that stay in the text; None: as the rules of the run say.
        write: The part of the chat that is written into the memory, one of `WRITES`; None: as the rules say.
        turn_by_turn: Whether the history is written turn by turn; None: as the rules say.
        target: The only thing that the answer is trained on, one of `TARGETS`. "" stands for the answer together with
            the other terms of the loss.
        weight: The weight of the answer tokens in the loss.
        cut: Whether the last answer was cut by length. Its end is then not trained.
        kind: The kind that a held-out answer is counted under separately.
    """

    where: str
    messages: tuple[Message, ...]
    value: str = ""
    recent: int | None = None
    write: str | None = None
    turn_by_turn: bool | None = None
    target: str = ""
    weight: float = 1.0
    cut: bool = False
    kind: str = ""


class RecordError(ValueError):
    """A record, or an answer in a record, is unusable.

    Args:
        message: The problem, beginning with the record's place.
        kind: The kind of fault in a few words. Records are counted by it.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


def listed(names: Iterable[str]) -> str:
    """Join names from a file for an error message: on one line, without control characters, not too long."""
    text = "".join(character if character.isprintable() else "?" for character in ", ".join(names))
    return text if len(text) <= _LONGEST_LIST else f"{text[:_LONGEST_LIST]}..."


def find_file(folder: Path, split: str) -> Path | None:
    """Find the file of a split in a data folder: `train.jsonl`, else `train.json`; None if there is neither."""
    return next((path for ending in ("jsonl", "json") if (path := folder / f"{split}.{ending}").is_file()), None)


def read_file(path: Path) -> Iterator[Record | RecordError]:
    """Yield the records of a file, in JSON lines or a JSON list. An unusable record gives an error in its place.

    Raises:
        ValueError: The file is a single JSON text that is not valid.
    """
    for found in json_records(path):
        where = f"{path.name} {found.place}"
        yield RecordError(f"{where} is {found.problem}") if found.problem else _record_or_error(where, found.value)


def records_of_rows(source: str, rows: Iterable[object]) -> Iterator[Record | RecordError]:
    """Yield the records of rows, as `read_file` does. Their places begin with `source` and count from 1."""
    return (_record_or_error(f"{source} record {number}", row) for number, row in enumerate(rows, 1))


def _record_or_error(where: str, row: object) -> Record | RecordError:
    try:
        return make_record(where, row)
    except RecordError as error:
        return error


def make_record(where: str, row: object) -> Record:
    """Make a record from a JSON value.

    Raises:
        RecordError: The value has neither form, or a field of it has a value that is not allowed.
    """
    if not isinstance(row, dict):
        raise RecordError(f"{where} is {kind_of(row)}; expected an object")
    # If some rows of a data set have a field, the `datasets` library adds it to all rows, with None as its value.
    given = {name: found for name, found in row.items() if found is not None}
    completion = next((name for name in _COMPLETIONS if name in given), None)
    if "messages" in given:
        messages = _messages(where, given["messages"])
    elif "prompt" in given and completion is not None:
        turns = (("user", "prompt"), ("assistant", completion))
        messages = tuple(_message(f"{where}, {name},", role, given[name]) for role, name in turns)
    else:
        raise RecordError(f"{where} has {listed(given) or 'no fields'}; expected messages, or prompt and completion")
    return Record(
        where,
        messages,
        _value(where, given.get("value", ""), messages[-1]["content"]),
        _recent(where, given),
        _one_of(where, given, "write", WRITES),
        _flag(where, given, "turn_by_turn"),
        _one_of(where, given, "target", TARGETS) or "",
        _weight(where, given),
        _flag(where, given, "cut") or False,
        _name(where, given, "kind"),
    )


def _messages(where: str, found: object) -> tuple[Message, ...]:
    items = given_items(found) if isinstance(found, list) else []
    if not items:
        raise RecordError(f"{where} has {kind_of(found)} for messages; expected a list of them")
    messages = []
    for index, each in enumerate(items):
        if not isinstance(each, dict):
            raise RecordError(f"{where}, message {index}, is {kind_of(each)}; expected an object with role and content")
        messages.append(_message(f"{where}, message {index},", each.get("role"), each.get("content")))
    return tuple(messages)


def _message(where: str, role: object, content: object) -> Message:
    return {"role": _text(where, "role", role), "content": _text(where, "content", content)}


def _text(where: str, name: str, text: object) -> str:
    if not isinstance(text, str):
        raise RecordError(f"{where} has {kind_of(text)} for its {name}; expected a text")
    kind, detail = text_problem(text)
    if kind:
        raise RecordError(f"{where} has {kind} in its {name} ({detail}); expected text")
    return check_text(text, name)


def _value(where: str, found: object, answer: str) -> str:
    if not isinstance(found, str) or found not in answer:
        raise RecordError(f"{where} has a value that is not in its last message; expected a part of the answer")
    return found


def _recent(where: str, given: Mapping[str, object]) -> int | None:
    found = given.get("recent_messages")
    if found is None:
        return None
    # In Python, True is an int as well.
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise RecordError(f"{where} has {kind_of(found)} for recent_messages; expected a whole number, 1 or more")
    return found


def _one_of(where: str, given: Mapping[str, object], name: str, choices: Sequence[str]) -> str | None:
    found = given.get(name)
    if found is None or (isinstance(found, str) and found in choices):
        return found
    what = listed([found]) if isinstance(found, str) else kind_of(found)
    raise RecordError(f"{where} has {what} for {name}; expected one of {', '.join(choices)}")


def _weight(where: str, given: Mapping[str, object]) -> float:
    found = given.get("weight", 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not _WEIGHTS[0] <= found <= _WEIGHTS[1]:
        what = f"{found:g}" if isinstance(found, float) else kind_of(found)
        raise RecordError(f"{where} has {what} for weight; expected a number from {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}")
    return float(found)


def _name(where: str, given: Mapping[str, object], name: str) -> str:
    found = given.get(name, "")
    if not isinstance(found, str) or not found.isprintable() or len(found) > _LONGEST_NAME:
        what = kind_of(found)
        raise RecordError(f"{where} has {what} for {name}; expected a short text, {_LONGEST_NAME} letters at most")
    return found


def _flag(where: str, given: Mapping[str, object], name: str) -> bool | None:
    found = given.get(name)
    if not isinstance(found, bool | None):
        raise RecordError(f"{where} has {kind_of(found)} for {name}; expected true or false")
    return found
