"""The rows of MemoryAgentBench: a long context and questions about it.

A row is {"context": text, "questions": [text], "answers": [[text]], "metadata": {"source": text, ...}}.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mlx_deltamem.evaluation.tasks.mab_sources import SPLITS, Source, find_source
from mlx_deltamem.evaluation.tasks.rows import Row, file_rows, folder_files, hub_rows

REPO = "ai-hyz/MemoryAgentBench"


@dataclass(frozen=True)
class ContextRow:
    """A row.

    Attributes:
        id: The name of its source, and its place among the rows of that source, counted from 0.
        name: Of its source: "ruler_qa1_197K" ...
        source: The kind of that source.
        context: A text of up to millions of characters.
        questions: Each with its accepted answers.
    """

    id: str
    name: str
    source: Source
    context: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def load_rows(data: Path | None, splits: tuple[str, ...], sources: tuple[str, ...]) -> Iterator[ContextRow]:
    """The rows of some splits and sources.

    Args:
        data: A file, or a folder of files; None: the data set on the Hub.
        splits: As the data set calls them; rows of others are left out.
        sources: What the names of sources may begin with; empty: all.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: They are damaged or of another kind, or none of them is of these splits and sources.
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
            f"{data or REPO} has no rows of {', '.join(sources) or 'any source'} in {', '.join(splits)}; expected some"
        )


def _rows(data: Path | None, splits: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    if data is None:
        for split in SPLITS:
            if split in splits:
                yield from hub_rows(REPO, split, f"data/{split}-*.parquet")
        return
    for file in folder_files(data) if data.is_dir() else [data]:
        # The names of films, which stand beside the rows.
        if file.name != "entity2id.json":
            yield from file_rows(file)


def _source(place: str, row: Row) -> tuple[str, Source]:
    metadata = row.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source"), str):
        raise ValueError(f"{place} has no metadata with a source; expected a row of MemoryAgentBench")
    return metadata["source"], find_source(metadata["source"])


def _context_row(place: str, row_id: str, name: str, source: Source, row: Row) -> ContextRow:
    context, questions, answers = row.get("context"), row.get("questions"), row.get("answers")
    if not isinstance(context, str) or not isinstance(questions, list) or not isinstance(answers, list):
        raise ValueError(f"{place} has no text `context` or no lists `questions` and `answers`; expected all three")
    if len(questions) != len(answers):
        raise ValueError(f"{place} has {len(questions)} questions and {len(answers)} answers; expected one for each")
    pairs = tuple(
        (str(question).strip(), _accepted(place, answer)) for question, answer in zip(questions, answers, strict=True)
    )
    return ContextRow(row_id, name, source, context, pairs)


def _accepted(place: str, answer: object) -> tuple[str, ...]:
    texts = answer if isinstance(answer, list) else [answer]
    accepted = tuple(dict.fromkeys(text for each in texts if (text := str(each).strip())))
    if not accepted:
        raise ValueError(f"{place} has a question without an answer; expected one answer or more")
    return accepted
