"""The files of JSON lines that a run writes as it goes on, and reads again when it is continued."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints

from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.files.atomic import file_kind
from mlx_deltamem.files.jsonl import Json, json_lines, kind_of


class Record(TypedDict):
    """A line of `records.jsonl`: a reply and its scores.

    Keys:
        task, condition, id, group, category, labels, golds: See `Question`, `Condition` and `Task`.
        seed: The run's sampling seed of the reply.
        reply: The text of the reply.
        ending: See `decoding.Ending`; None if it is unknown.
        scores: By metric, from 0 to 1; the task's main metric is first.
        asked: The digest of the question (`question.digests`).
        memory_of: Under `shuffled`, the group that the memory belongs to; else None.
        question: The user's message without the history.
        tokens: The number of generated tokens.
        questions: The number of questions of the whole task, for tasks of lm-evaluation-harness.
        evidence: The share of the turns with the evidence that were in the text, from 0 to 1; None if there are none,
            or if it is not known.
    """

    task: str
    condition: str
    seed: int
    id: str
    group: str
    category: str
    labels: dict[str, float | str]
    golds: list[str]
    reply: str
    ending: str | None
    scores: dict[str, float]
    asked: NotRequired[str]
    memory_of: NotRequired[str | None]
    question: NotRequired[str]
    tokens: NotRequired[int]
    questions: NotRequired[int]
    evidence: NotRequired[float | None]


class MeasuresRow(TypedDict):
    """A line of `measures.jsonl`: the `effects.Measures` of a batch of questions.

    Keys:
        task, condition: The task and the condition.
        questions: For each question of the batch, "SEED/ID".
        Others: See `effects.Measures`.
    """

    task: str
    condition: str
    questions: list[str]
    prompt_tokens: int
    prompt_seconds: float
    reply_tokens: int
    reply_seconds: float
    peak_memory: int
    beyond_window: int
    write: float
    written: int
    correction: float
    corrected: int
    norm: float
    prompts: int
    kept_bytes: int
    memory_bytes: int
    turns: int
    read_tokens: int
    told_seconds: float
    asked_seconds: float


Row = TypeVar("Row", Record, MeasuresRow)

# The key that rows of measures have and records do not.
_OF_MEASURES = "prompt_tokens"
_HINTS = {kind: get_type_hints(kind) for kind in (Record, MeasuresRow)}
_NAMES = {str: "a text", int: "a whole number", float: "a number", NoneType: "null", dict: "an object", list: "a list"}


class JsonLines(Generic[Row]):
    """A file of JSON lines that rows are appended to.

    If a process was killed while it wrote a row, the unfinished last line is removed.

    Args:
        path: The file. Its rows are read if it exists.

    Attributes:
        rows: All rows of the file.

    Raises:
        ValueError: A row before the last one is damaged: it is not JSON, it lacks a key, or a value is of another type.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path = path
        self.rows: list[Row] = []
        # Opening a pipe would wait for a writer.
        if kind := file_kind(path):
            if kind != "file":
                raise ValueError(f"{path} is a {kind}; expected a file of JSON lines: remove it")
            _remove_unfinished_line(path)
            self._read()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows. When this returns, they are in the file even if the process is killed."""
        added = list(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in added)
        with self._path.open("ab") as file:
            file.write(text.encode())
        self.rows += added

    def _read(self) -> None:
        metrics: dict[object, object] = {}
        for record in json_lines(self._path):
            problem = record.problem or _problem(record.value, metrics)
            if problem:
                raise ValueError(f"{self._path} {record.place} is damaged ({problem}); remove the file")
            self.rows.append(cast(Row, record.value))


def _problem(row: Json, metrics: dict[object, object]) -> str:
    """Why a value is no row, in words; empty if it is one.

    Args:
        row: The value of a line.
        metrics: The names of the scores by task and condition, of the lines before it; those of this line are added. A
            task of lm-evaluation-harness may have other scores under another condition.
    """
    if not isinstance(row, dict):
        return f"it is {kind_of(row)}, expected an object"
    kind = MeasuresRow if _OF_MEASURES in row else Record
    for name, hint in _HINTS[kind].items():
        if name not in row:
            if name in kind.__required_keys__:
                return f"it has no {name}"
        elif problem := _mismatch(row[name], hint):
            return f"its {name} {problem}"
    if kind is Record:
        names = list(cast("dict[str, float]", row["scores"]))
        place = row["task"], row["condition"]
        if not names or metrics.setdefault(place, names) != names:
            found = shown(", ".join(names)) or "empty"
            return f"its scores are {found}, expected those of the other records of its task and condition"
    return ""


def _mismatch(value: Json, hint: Any) -> str:
    """The problem with a value that has this type in a `TypedDict`; empty if there is none."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(get_origin(each) or each for each in allowed)
    if not _is_a(value, kinds):
        return f"is {kind_of(value)}, expected {' or '.join(_NAMES[each] for each in kinds)}"
    inner = get_args(hint)[-1:] if get_origin(hint) in (list, dict) else ()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = (_mismatch(item, each) for each in inner for item in items)
    return next((f"has a value that {problem}" for problem in found if problem), "")


def _is_a(value: Json, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; a whole number is a number, and a number fits into a float."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        fits = isinstance(value, float) or abs(value) <= sys.float_info.max
        return fits and (float in kinds or (int in kinds and isinstance(value, int)))
    return type(value) in kinds


def _remove_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
