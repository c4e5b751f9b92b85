"""Reads the papers of a QASPER file, in its public form or in the rows of its Hugging Face form.

Public: {id: {title, abstract, full_text: [{section_name, paragraphs}], figures_and_tables: [{caption, file}],
qas: [{question, question_id, answers: [{answer: {unanswerable, extractive_spans, free_form_answer, yes_no}}]}]}}.
A row is such a paper with its `id`. Each list of objects may also be an object of lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.data.episode_files import checked_text, shown
from mlx_deltamem.files.jsonl import Json, json_records

# Between the names of a section and its subsection.
_SUBSECTION = " ::: "
_YES_NO = {"True": "Yes", "False": "No"}

JsonObject = dict[str, Json]


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
            for name, paper in value.items():
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
    return value


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
        answer = row.get("answer")
        if not isinstance(answer, dict):
            raise ValueError("an answer is not an object")
        if answer.get("unanswerable"):
            return None
        spans = ", ".join(text for text in _texts(answer, "extractive_spans") if text)
        text = spans or _text(answer, "free_form_answer") or _YES_NO.get(str(answer.get("yes_no")))
        if text:
            return text
    raise ValueError("it has no answer")


def _text(row: JsonObject, name: str) -> str:
    text = row.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"its {name} is not a text")
    return checked_text(text.strip())


def _texts(row: JsonObject, name: str) -> list[str]:
    texts = row.get(name)
    if texts is None:
        return []
    if not isinstance(texts, list):
        raise ValueError(f"its {name} is not a list of texts")
    return [_text({name: text}, name) for text in texts]


def _rows(row: JsonObject, name: str) -> list[JsonObject]:
    """Return a list of objects, which may have the form of an object of lists."""
    value = row.get(name)
    if value is None:
        return []
    if isinstance(value, dict):
        return _rows_of_columns(value, name)
    objects = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else None
    if objects is None or not isinstance(value, list) or len(objects) < len(value):
        raise ValueError(f"its {name} is not a list of objects")
    return objects


def _rows_of_columns(columns: JsonObject, name: str) -> list[JsonObject]:
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
        raise ValueError(f"its {name} is not an object of lists of one length")
    return [dict(zip(columns, items, strict=True)) for items in zip(*lists, strict=True)]
