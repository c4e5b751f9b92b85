"""The data of MemoryAgentBench (facts 4.2): rows with a long context and questions about it, from several sources.

A row is {"context": text, "questions": [text], "answers": [[text]], "metadata": {"source": text, ...}}.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from mlx_deltamem.evaluation.tasks.rows import Row, file_rows, folder_files, hub_rows

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
class ContextRow:
    """A row.

    Attributes:
        id: The name of the source, and the place among the rows of that source, counted from 0.
        name: The name of the source, for example "ruler_qa1_197K".
        source: The kind of the source.
        context: A text of up to millions of characters.
        questions: The questions, each with its accepted answers.
    """

    id: str
    name: str
    source: Source
    context: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


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
    raise ValueError(f"there is no source {name!r} in MemoryAgentBench; expected one of {known}")


def load_rows(data: Path | None, splits: tuple[str, ...], sources: tuple[str, ...]) -> Iterator[ContextRow]:
    """The rows of some splits and sources.

    Args:
        data: A file, or a folder of files; None: the data set on the Hub.
        splits: The names of the splits in the data set. Rows of other splits are left out.
        sources: Prefixes of the names of sources; empty: all sources.

    Raises:
        FileNotFoundError: The data do not exist.
        ValueError: The data are damaged or of another kind, or have no rows of these splits and sources.
    """
    places: dict[str, count[int]] = {}
    found = False
    for place, row in _rows(data, splits):
        name, source = _source(place, row)
        if source.split not in splits or (sources and not name.startswith(sources)):
            continue
        number = next(places.setdefault(name, count()))
        found = True
        yield _context_row(place, f"{name}/{number}", name, source, row)
    if not found:
        raise ValueError(
            f"{data or REPO} has no rows of {', '.join(sources) or 'any source'} in {', '.join(splits)}; choose other "
            "splits or sources"
        )


def _rows(data: Path | None, splits: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    if data is None:
        for split in SPLITS:
            if split in splits:
                yield from hub_rows(REPO, split, f"data/{split}-*.parquet")
        return
    for file in folder_files(data) if data.is_dir() else [data]:
        # This file in the same folder has the names of films.
        if file.name != "entity2id.json":
            yield from file_rows(file)


def _source(place: str, row: Row) -> tuple[str, Source]:
    metadata = row.get("metadata")
    name = metadata.get("source") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{place} has no metadata with a source; expected a row of MemoryAgentBench")
    return name, find_source(name)


def _context_row(place: str, row_id: str, name: str, source: Source, row: Row) -> ContextRow:
    context, questions, answers = row.get("context"), row.get("questions"), row.get("answers")
    if not isinstance(context, str) or not isinstance(questions, list) or not isinstance(answers, list):
        raise ValueError(f"{place} has no text `context` or no lists `questions` and `answers`; expected all three")
    if len(questions) != len(answers):
        raise ValueError(f"{place} has {len(questions)} questions and {len(answers)} answers; expected equal numbers")
    pairs = tuple(
        (str(question).strip(), _accepted(place, answer)) for question, answer in zip(questions, answers, strict=True)
    )
    return ContextRow(row_id, name, source, context, pairs)


def _accepted(place: str, answer: object) -> tuple[str, ...]:
    texts = answer if isinstance(answer, list) else [answer]
    accepted = tuple(dict.fromkeys(text for each in texts if (text := str(each).strip())))
    if not accepted:
        raise ValueError(f"{place} has a question without an answer; expected at least one answer")
    return accepted
