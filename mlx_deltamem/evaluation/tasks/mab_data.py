"""The data of MemoryAgentBench (facts 4.2): rows with a long context and questions about it, from several sources.

A row is {"context": text, "questions": [text], "answers": [[text]], "metadata": {"source": text, ...}}.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.rows import file_rows, folder_files, hub_rows
from mlx_deltamem.files.fields import Row, as_answer, as_text, given_fields, given_items, is_absent, shown
from mlx_deltamem.files.jsonl import Json

EXPECTED = "rows of MemoryAgentBench"
REPO = "ai-hyz/MemoryAgentBench"

Metric = Literal["accuracy", "f1", "recall@5"]

# The splits of the data set, and the categories of their questions.
SPLITS = {
    "Accurate_Retrieval": "accurate_retrieval",
    "Test_Time_Learning": "test_time_learning",
    "Long_Range_Understanding": "long_range_understanding",
    "Conflict_Resolution": "selective_forgetting",
}


@dataclass(frozen=True)
class Source:
    """A kind of rows.

    Attributes:
        prefix: The beginning of the name of a row's source.
        split: The split of the data set that contains the rows.
        metric: The score of the replies.
        max_tokens: The longest reply, in tokens.
    """

    prefix: str
    split: str
    metric: Metric
    max_tokens: int


SOURCES = (
    Source("ruler_qa", "Accurate_Retrieval", "accuracy", 50),
    Source("longmemeval_s", "Accurate_Retrieval", "accuracy", 50),
    Source("eventqa_", "Accurate_Retrieval", "accuracy", 40),
    Source("icl_", "Test_Time_Learning", "accuracy", 20),
    Source("recsys_", "Test_Time_Learning", "recall@5", 300),
    Source("infbench_sum", "Long_Range_Understanding", "f1", 1200),
    Source("detective_qa", "Long_Range_Understanding", "accuracy", 2000),
    Source("factconsolidation_", "Conflict_Resolution", "accuracy", 10),
)


@dataclass(frozen=True)
class RowQuestion:
    """A question of a row.

    Attributes:
        number: The place among the questions of the row, counted from 0.
        text: The question.
        answers: The accepted answers.
    """

    number: int
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ContextRow:
    """A row.

    Attributes:
        id: The name of the source, and the place among the rows of that source, counted from 0.
        name: The name of the source, for example "ruler_qa1_197K".
        source: The kind of the source.
        context: A text of up to millions of characters.
        questions: The questions that can be asked.
        count: The number of all questions in the row.
    """

    id: str
    name: str
    source: Source
    context: str
    questions: tuple[RowQuestion, ...]
    count: int


def find_source(name: str) -> Source:
    """The kind of a source.

    Args:
        name: The name of the source, `metadata.source` of a row.

    Raises:
        ValueError: The benchmark has no such source.
    """
    for source in SOURCES:
        if name.startswith(source.prefix):
            return source
    known = ", ".join(source.prefix + "..." for source in SOURCES)
    raise ValueError(f"there is no source {shown(name)} in MemoryAgentBench; expected one of {known}")


def load_rows(
    data: Path | None, splits: tuple[str, ...], sources: tuple[str, ...], left_out: LeftOut
) -> Iterator[ContextRow]:
    """The rows of some splits and sources.

    Args:
        data: A file, or a folder of files; None: the data set on the Hub.
        splits: The names of the splits in the data set. Rows of other splits are left out.
        sources: Prefixes of the names of sources; empty: all sources.
        left_out: Counts the rows and questions that cannot be used.

    Raises:
        FileNotFoundError: The data do not exist.
        ValueError: A file is damaged, or the data have no rows of these splits and sources.
    """
    places: dict[str, count[int]] = {}
    found = False
    for place, row in _rows(data, splits, left_out):
        try:
            fields = given_fields(row)
            name, source = _source(fields)
        except ValueError as error:
            left_out.add(f"{place} has {error}")
            continue
        if source.split not in splits or (sources and not name.startswith(sources)):
            continue
        found = True
        # A row that cannot be used keeps the places of the others.
        row_id = f"{name}/{next(places.setdefault(name, count()))}"
        listed = fields.get("questions")
        size = len(listed) if isinstance(listed, list) else 0
        try:
            context, asked = _context(fields)
        except ValueError as error:
            left_out.add(f"{place} has {error}")
            context, asked = "", []
        yield ContextRow(row_id, name, source, context, tuple(_usable(place, asked, left_out)), size)
    if not found and not left_out.count:
        raise ValueError(
            f"{data or REPO} has no rows of {', '.join(sources) or 'any source'} in {', '.join(splits)}; choose other "
            "splits or sources"
        )


def _rows(data: Path | None, splits: tuple[str, ...], left_out: LeftOut) -> Iterator[tuple[str, Row]]:
    if data is None:
        for split in SPLITS:
            if split in splits:
                yield from hub_rows(REPO, split, f"data/{split}-*.parquet")
        return
    for file in folder_files(data) if data.is_dir() else [data]:
        # This file in the same folder has the names of films.
        if file.name != "entity2id.json":
            yield from file_rows(file, left_out)


def _source(row: Row) -> tuple[str, Source]:
    metadata = row.get("metadata")
    name = metadata.get("source") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise ValueError("no metadata with a source")
    name = as_text(name, "a source that")
    try:
        return name, find_source(name)
    except ValueError as error:
        raise ValueError(f"an unknown source ({error})") from None


def _context(row: Row) -> tuple[str, list[tuple[Json, Json]]]:
    """The context of a row, and its questions with their answers."""
    context, questions, answers = row.get("context"), row.get("questions"), row.get("answers")
    if not isinstance(context, str) or not isinstance(questions, list) or not isinstance(answers, list):
        raise ValueError("no text `context` or no lists `questions` and `answers`, expected all three")
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions and {len(answers)} answers, expected equal numbers")
    return as_text(context, "a `context` that"), list(zip(questions, answers, strict=True))


def _usable(place: str, asked: list[tuple[Json, Json]], left_out: LeftOut) -> Iterator[RowQuestion]:
    for number, (question, answer) in enumerate(asked):
        accepted: list[Json] = answer if isinstance(answer, list) else [answer]
        if is_absent(question) and all(map(is_absent, accepted)):
            continue
        try:
            yield RowQuestion(number, _question(question), _accepted(accepted))
        except ValueError as error:
            left_out.add(f"{place} has a question {error} (question {number + 1})")


def _question(question: Json) -> str:
    if is_absent(question) or _is_blank(question):
        raise ValueError("without a text")
    return as_text(question, "that").strip()


def _accepted(answers: list[Json]) -> tuple[str, ...]:
    given = [answer for answer in given_items(answers) if not _is_blank(answer)]
    if not given:
        raise ValueError("without an answer")
    return tuple(dict.fromkeys(as_answer(answer, "with an answer that").strip() for answer in given))


def _is_blank(value: Json) -> bool:
    return isinstance(value, str) and not value.strip()
