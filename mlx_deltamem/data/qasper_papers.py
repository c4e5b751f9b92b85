"""Reads the papers of a QASPER file, in its public form or in the rows of its Hugging Face form.

Public: {id: {title, abstract, full_text: [{section_name, paragraphs}], figures_and_tables: [{caption, file}],
qas: [{question, question_id, answers: [{answer: {unanswerable, extractive_spans, free_form_answer, yes_no}}]}]}}.
A row is such a paper with its `id`. Each list of objects may also be an object of lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.data.episode_files import shown
from mlx_deltamem.files.fields import Row, given_fields, given_items
from mlx_deltamem.files.jsonl import Json, json_records, kind_of
from mlx_deltamem.files.text import check_text

# Between the names of a section and its subsection.
_SUBSECTION = " ::: "
_YES_NO = {True: "Yes", False: "No"}

JsonObject = Row


@dataclass(frozen=True)
class Entry:
    """A paper of a file before it is checked. `problem` is the problem with its JSON, or empty."""

    place: str
    value: Json
    problem: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, and the name of its section, which may be empty."""

    section: str
    text: str


def entries(path: Path) -> Iterator[Entry]:
    """Yield the papers of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a single JSON text that is not valid.
    """
    for record in json_records(path):
        value = record.value
        if isinstance(value, dict) and not value.keys() & {"full_text", "qas"}:
            for name, paper in given_fields(value).items():
                yield Entry(f"paper {shown(name)}", paper)
        elif isinstance(value, dict) and isinstance(value.get("id"), str):
            yield Entry(f"{record.place}, paper {shown(value['id'])}", value)
        else:
            yield Entry(record.place, value, record.problem)


def paper_of(value: Json) -> JsonObject:
    """Return a paper from a JSON value.

    Raises:
        ValueError: The value is not an object.
    """
    if not isinstance(value, dict):
        raise ValueError("not an object with a paper")
    return given_fields(value)


def paragraphs(paper: JsonObject) -> list[Paragraph]:
    """Return a paper's title, abstract, sections and captions.

    Raises:
        ValueError: A part of the paper has another form.
    """
    found = [Paragraph("", _text(paper, "title")), Paragraph("Abstract", _text(paper, "abstract"))]
    for section in _rows(paper, "full_text"):
        name = _text(section, "section_name").replace(_SUBSECTION, ": ")
        found += [Paragraph(name, text) for text in _texts(section, "paragraphs")]
    found += [Paragraph("Figures and tables", _text(row, "caption")) for row in _rows(paper, "figures_and_tables")]
    return [paragraph for paragraph in found if paragraph.text]


def questions(paper: JsonObject) -> list[JsonObject]:
    """Return the questions about a paper.

    Raises:
        ValueError: They are not objects.
    """
    return _rows(paper, "qas")


def question_text(question: JsonObject) -> str:
    """Return the text of a question.

    Raises:
        ValueError: It is not a text.
    """
    return _text(question, "question")


def answer_text(question: JsonObject) -> str | None:
    """Return the first answer of a question; None if the question has no answer in the paper.

    The kinds of answers have the order of QASPER's own scores: spans, free form, yes or no.

    Raises:
        ValueError: There is no answer.
    """
    for row in _rows(question, "answers"):
        if "answer" not in row:
            continue
        if not isinstance(row["answer"], dict):
            raise ValueError("an answer is not an object")
        answer = given_fields(row["answer"])
        if _flag(answer, "unanswerable"):
            return None
        spans = ", ".join(text for text in _texts(answer, "extractive_spans") if text)
        if text := spans or _text(answer, "free_form_answer") or _yes_no(answer):
            return text
    raise ValueError("it has no answer")


def _yes_no(answer: JsonObject) -> str:
    return _YES_NO[_flag(answer, "yes_no")] if "yes_no" in answer else ""


def _flag(row: JsonObject, name: str) -> bool:
    value = row.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"its {name} is {kind_of(value)}, expected true or false")
    return value


def _text(row: JsonObject, name: str) -> str:
    text = row.get(name, "")
    if not isinstance(text, str):
        raise ValueError(f"its {name} is not a text")
    return check_text(text.strip(), f"its {name}")


def _texts(row: JsonObject, name: str) -> list[str]:
    texts = row.get(name, [])
    if not isinstance(texts, list):
        raise ValueError(f"its {name} is not a list of texts")
    return [_text({name: text}, name) for text in given_items(texts)]


def _rows(row: JsonObject, name: str) -> list[JsonObject]:
    """Return a list of objects without their absent fields. The list may have the form of an object of lists."""
    value = row.get(name, [])
    if isinstance(value, dict):
        return _rows_of_columns(given_fields(value), name)
    items = given_items(value) if isinstance(value, list) else None
    if items is None or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"its {name} is not a list of objects")
    return [given_fields(item) for item in items]


def _rows_of_columns(columns: JsonObject, name: str) -> list[JsonObject]:
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
        raise ValueError(f"its {name} is not an object of lists of one length")
    return [given_fields(dict(zip(columns, items, strict=True))) for items in zip(*lists, strict=True)]
