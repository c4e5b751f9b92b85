"""The task `hotpotqa`, HotpotQA in the distractor setting: answers that need two of ten passages (facts 4.3).

Data: https://hotpotqa.github.io.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.task import Backbone, Task
from mlx_deltamem.evaluation.tasks.answers import first_line, span_tokens, squad_tokens, token_f1
from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.rows import file_rows, hub_rows
from mlx_deltamem.files.fields import Row, as_text, given_fields, given_items, is_absent, shown
from mlx_deltamem.files.jsonl import Json

_EXPECTED = "rows of HotpotQA's validation split"
_REPO = "hotpotqa/hotpot_qa"
_MAX_TOKENS = 32
_SHORT = "Reply with a short span or yes/no only.\n\n"
# The wording of the published runs.
_CONTEXT = "Answer the question using only the passages below.\n" + _SHORT
# The wording of this project, for conditions without the passages in the text.
_NO_CONTEXT = "Answer the question using only the passages that you were told before.\n" + _SHORT
_QUESTION = "Question: {}\nAnswer:"
# Answers that the official scorer counts as right or wrong as a whole.
_WHOLE = ("yes", "no", "noanswer")


@dataclass(frozen=True)
class HotpotQA(Task):
    """Questions with a short answer about ten titled passages, two of which are needed."""

    name: ClassVar[str] = "hotpotqa"
    title: ClassVar[str] = "HotpotQA, distractor setting, validation split"
    source: ClassVar[str] = f"{_REPO} on the Hugging Face Hub (CC BY-SA 4.0), or a file of its rows"
    breakdowns: ClassVar[tuple[str, ...]] = ("level",)

    @property
    def differences(self) -> tuple[str, ...]:
        return (
            "The scores `em` and `f1` are those of the published runs. `official_em` and `official_f1` are HotpotQA's "
            "own: punctuation does not separate words, and yes and no are right or wrong as a whole.",
            "No script of the published runs without the text is public. Ours leaves the passages out of the prompt, "
            "and the memory reads each passage as a message.",
        )

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """See `Task`. Every question has different passages, so it is a group by itself.

        Raises:
            FileNotFoundError: The data do not exist.
            ValueError: The data are damaged or of another kind, or a package that reads them is not installed.
        """
        left_out = LeftOut(str(self.data or _REPO), _EXPECTED)
        yield from left_out.told(_questions(_rows(self.data, left_out), left_out))

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """Exact match and F1 of the first line, by the published rules and by the official ones."""
        line, gold = first_line(reply), question.golds[0]
        em, f1 = _match(span_tokens(line), span_tokens(gold)) if line else (0.0, 0.0)
        official_em, official_f1 = official(line, gold) if line else (0.0, 0.0)
        return {"em": em, "f1": f1, "official_em": official_em, "official_f1": official_f1}


def official(line: str, gold: str) -> tuple[float, float]:
    """The exact match and F1 of HotpotQA's official scorer.

    If the reply or the answer is yes, no or noanswer, the F1 is the exact match.
    """
    said, wanted = squad_tokens(line), squad_tokens(gold)
    em, f1 = _match(said, wanted)
    return (em, f1) if " ".join(said) not in _WHOLE and " ".join(wanted) not in _WHOLE else (em, em)


def _match(said: list[str], wanted: list[str]) -> tuple[float, float]:
    em = float(said == wanted)
    return em, em or token_f1(said, wanted)


def _rows(data: Path | None, left_out: LeftOut) -> Iterator[tuple[str, Row]]:
    return file_rows(data, left_out) if data else hub_rows(_REPO, "validation", "distractor/validation-*.parquet")


def _questions(rows: Iterator[tuple[str, Row]], left_out: LeftOut) -> Iterator[Question]:
    found: set[str] = set()
    for index, (place, row) in enumerate(rows):
        try:
            question = _question(index, given_fields(row))
            if question.id in found:
                raise ValueError(f"the name {shown(question.id)}, which an earlier row has")
        except ValueError as error:
            left_out.add(f"{place} has {error}")
        else:
            found.add(question.id)
            yield question


def _question(index: int, row: Row) -> Question:
    passages = _passages(row.get("context"))
    question, answer, kind, level = (_text(row, name) for name in ("question", "answer", "type", "level"))
    name = _text(row, "id" if "id" in row else "_id")
    prompt = _QUESTION.format(question)
    return Question(
        id=name,
        group=name,
        history=tuple(map(user_message, passages)),
        question=_NO_CONTEXT + prompt,
        golds=(answer,),
        category=kind,
        max_tokens=_MAX_TOKENS,
        context=_CONTEXT + "\n\n".join(passages),
        preface=len(_CONTEXT),
        question_with_context="\n\n" + prompt,
        query=question,
        labels={"level": level},
        index=index,
    )


def _passages(context: Json) -> list[str]:
    """The passages of a row, numbered and titled. Rows of the Hub and of the original file have different forms."""
    try:
        texts = [
            (as_text(title, "a title"), _joined(sentences))
            for title, sentences in _titled_passages(context)
            if not (is_absent(title) and is_absent(sentences))
        ]
    except ValueError as error:
        raise ValueError(f"no `context` of titles and sentences ({error})") from None
    passages = [f"Passage {number} - {title}:\n{text}" for number, (title, text) in enumerate(texts, 1) if text]
    if not passages:
        raise ValueError("no `context` of titles and sentences (all are empty)")
    return passages


def _titled_passages(context: Json) -> list[tuple[Json, Json]]:
    """The titles and the sentences: of an object with two lists (Hub), or of a list of pairs (original)."""
    if isinstance(context, dict):
        titles, sentences = context.get("title"), context.get("sentences")
        if not isinstance(titles, list) or not isinstance(sentences, list):
            raise ValueError("no lists `title` and `sentences`")
        if len(titles) != len(sentences):
            raise ValueError(f"{len(titles)} titles and {len(sentences)} lists of sentences")
        return list(zip(titles, sentences, strict=True))
    pairs = given_items(context)
    return [_pair(pair) for pair in pairs]


def _pair(pair: Json) -> tuple[Json, Json]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"{shown(pair)} instead of a title and its sentences")
    return pair[0], pair[1]


def _joined(sentences: Json) -> str:
    if is_absent(sentences):
        return ""
    texts = [as_text(sentence, "a sentence").strip() for sentence in given_items(sentences)]
    return " ".join(text for text in texts if text)


def _text(row: Row, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no text `{name}`")
    return as_text(text, f"a `{name}` that").strip()
