"""The records that an adapter is trained on, in mlx-lm's formats: `messages`, or `prompt` and `completion`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.files.jsonl import json_records
from mlx_deltamem.sessions.template import Message
from mlx_deltamem.sessions.writing import WRITES

SPLITS = ("train", "valid")
# The second is the reference's name for it.
_COMPLETIONS = ("completion", "response")
_LONGEST_LIST = 100
# The answer, or what the frozen model would say after the same visible text.
ANSWER, FROZEN = TARGETS = ("answer", "frozen")
_LARGEST_WEIGHT = 1e6
_LONGEST_NAME = 40
# For records and options of earlier versions.
RENAMED = "put write: all for writes: true, and write: after for writes: false"


@dataclass(frozen=True)
class Record:
    """One chat of a data set.

    Attributes:
        where: Its place, for messages to the user: file and line.
        messages: The chat; its last message is an answer.
        value: The part of that answer that matters, or "".
        recent: So many messages before an answer stay in the text, instead of as many as everywhere.
        write: What of the chat is written into the memory, one of `WRITES`, where that is not as everywhere.
        turn_by_turn: Whether the history is written turn by turn, where that is not as everywhere.
        target: What alone the answer is learned from, one of `TARGETS`, or "": the answer, and what else the loss has.
        weight: Of the answer's tokens in the loss.
        cut: The last answer was cut by length, so that its end is not to be learned.
        kind: What its answer is counted under, too, where it is held out.
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
    """A record, or an answer in one, that cannot be used.

    Args:
        message: What is wrong, beginning with the record's place.
        kind: In a few words, the kind of fault: such records are counted together.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


def listed(names: Iterable[str]) -> str:
    """Names out of a file as a message may show them: on one line, without control characters, not too long."""
    text = "".join(character if character.isprintable() else "?" for character in ", ".join(names))
    return text if len(text) <= _LONGEST_LIST else f"{text[:_LONGEST_LIST]}..."


def find_file(folder: Path, split: str) -> Path | None:
    """The file of a split in a data folder: `train.jsonl`, or else `train.json`; None where there is neither."""
    return next((path for ending in ("jsonl", "json") if (path := folder / f"{split}.{ending}").is_file()), None)


def read_file(path: Path) -> Iterator[Record | RecordError]:
    """The records of a file, one a line or in a JSON list. What cannot be used comes as an error in its place.

    Raises:
        ValueError: The file is one JSON text, and a broken one.
    """
    for found in json_records(path):
        where = f"{path.name} {found.place}"
        yield RecordError(f"{where} is {found.problem}") if found.problem else _record_or_error(where, found.value)


def records_of_rows(source: str, rows: Iterable[object]) -> Iterator[Record | RecordError]:
    """The records of rows that were read already, the first of which is record 1, as `read_file` gives them."""
    return (_record_or_error(f"{source} record {number}", row) for number, row in enumerate(rows, 1))


def _record_or_error(where: str, row: object) -> Record | RecordError:
    try:
        return make_record(where, row)
    except RecordError as error:
        return error


def make_record(where: str, row: object) -> Record:
    """A record from what was read.

    Raises:
        RecordError: It has neither form.
    """
    if not isinstance(row, dict):
        raise RecordError(f"{where} is {_kind(row)}; expected an object")
    # Where some rows of a data set have a field, the Hub's library gives it to all, filled with None.
    given = {name: found for name, found in row.items() if found is not None}
    completion = next((name for name in _COMPLETIONS if name in given), None)
    if "messages" in given:
        messages = _messages(where, given["messages"])
    elif "prompt" in given and completion is not None:
        turns = (("user", "prompt"), ("assistant", completion))
        messages = tuple(_message(f"{where}, {name},", role, given[name]) for role, name in turns)
    else:
        raise RecordError(f"{where} has {listed(given) or 'no fields'}; expected messages, or prompt and completion")
    if "writes" in given:
        raise RecordError(f"{where} has writes, which is now called write; {RENAMED}")
    value = _value(where, given.get("value", ""), messages[-1]["content"])
    return Record(
        where,
        messages,
        value,
        _recent(where, given),
        _one_of(where, given, "write", WRITES),
        _flag(where, given, "turn_by_turn"),
        _one_of(where, given, "target", TARGETS) or "",
        _weight(where, given),
        _flag(where, given, "cut") or False,
        _name(where, given, "kind"),
    )


def _messages(where: str, found: object) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        raise RecordError(f"{where} has {_kind(found)} for messages; expected a list of them")
    messages = []
    for index, each in enumerate(found):
        if not isinstance(each, dict):
            raise RecordError(f"{where}, message {index}, is {_kind(each)}; expected an object with role and content")
        messages.append(_message(f"{where}, message {index},", each.get("role"), each.get("content")))
    return tuple(messages)


def _message(where: str, role: object, content: object) -> Message:
    for name, text in (("role", role), ("content", content)):
        if not isinstance(text, str):
            raise RecordError(f"{where} has {_kind(text)} for its {name}; expected a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RecordError(f"{where} has half a character in its {name} (a lone surrogate); expected text") from None
    return {"role": role, "content": content}


def _value(where: str, found: object, answer: str) -> str:
    if not isinstance(found, str) or found not in answer:
        raise RecordError(f"{where} has a value that is not in its last message; expected a part of the answer")
    return found


def _recent(where: str, given: dict[str, object]) -> int | None:
    found = given.get("recent_messages")
    # Not isinstance, by which True is an int, too.
    if found is not None and (type(found) is not int or found < 1):
        raise RecordError(f"{where} has {_kind(found)} for recent_messages; expected a whole number, 1 or more")
    return found


def _one_of(where: str, given: dict[str, object], name: str, choices: Sequence[str]) -> str | None:
    found = given.get(name)
    if found is not None and found not in choices:
        what = listed([found]) if isinstance(found, str) else _kind(found)
        raise RecordError(f"{where} has {what} for {name}; expected one of {', '.join(choices)}")
    return found


def _weight(where: str, given: dict[str, object]) -> float:
    found = given.get("weight", 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= _LARGEST_WEIGHT:
        what = f"{found:g}" if isinstance(found, float) else _kind(found)
        raise RecordError(f"{where} has {what} for weight; expected a number above 0, {_LARGEST_WEIGHT:g} at most")
    return float(found)


def _name(where: str, given: dict[str, object], name: str) -> str:
    found = given.get(name, "")
    if not isinstance(found, str) or not found.isprintable() or len(found) > _LONGEST_NAME:
        what = _kind(found)
        raise RecordError(f"{where} has {what} for {name}; expected a short text, {_LONGEST_NAME} letters at most")
    return found


def _flag(where: str, given: dict[str, object], name: str) -> bool | None:
    found = given.get(name)
    if not isinstance(found, bool | None):
        raise RecordError(f"{where} has {_kind(found)} for {name}; expected true or false")
    return found


def _kind(found: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return "an empty list" if found == [] else kinds.get(type(found), "a number")
