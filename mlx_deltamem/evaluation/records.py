"""The files of JSON lines that a run writes as it goes on, and reads again when it is continued."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, NotRequired, TypedDict, TypeVar, cast

from mlx_deltamem.files.jsonl import json_lines


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


Row = TypeVar("Row", Record, MeasuresRow)


class JsonLines(Generic[Row]):
    """A file of JSON lines that rows are appended to.

    If a process was killed while it wrote a row, the unfinished last line is removed.

    Args:
        path: The file. Its rows are read if it exists.

    Attributes:
        rows: All rows of the file.

    Raises:
        ValueError: A row before the last one is damaged.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
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
        for record in json_lines(self._path):
            if not isinstance(record.value, dict):
                problem = record.problem or f"it is {type(record.value).__name__}, expected an object"
                raise ValueError(f"{self._path} {record.place} is damaged ({problem}); remove the file")
            self.rows.append(cast(Row, record.value))


def _remove_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
