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
from mlx_deltamem.evaluation.tasks.rows import Row, expect_list, expect_text, file_rows, hub_rows
from mlx_deltamem.files.jsonl import Json

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
        for index, (place, row) in enumerate(_rows(self.data)):
            passages = _passages(place, row)
            question, answer, kind, level = (
                _text(place, row, name) for name in ("question", "answer", "type", "level")
            )
            prompt = _QUESTION.format(question)
            yield Question(
                id=_text(place, row, "id" if "id" in row else "_id"),
                group=_text(place, row, "id" if "id" in row else "_id"),
                history=tuple(map(user_message, passages)),
                question=_NO_CONTEXT + prompt,
                golds=(answer,),
                category=kind,
                max_tokens=_MAX_TOKENS,
                context=_CONTEXT + "\n\n".join(passages),
                question_with_context="\n\n" + prompt,
                labels={"level": level},
                index=index,
            )

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


def _rows(data: Path | None) -> Iterator[tuple[str, Row]]:
    return file_rows(data) if data else hub_rows(_REPO, "validation", "distractor/validation-*.parquet")


def _passages(place: str, row: Row) -> list[str]:
    """The passages of a row, numbered and titled. Rows of the Hub and of the original file have different forms."""
    try:
        texts = [(title, _joined(sentences)) for title, sentences in _titled_passages(row.get("context"))]
    except (KeyError, ValueError):
        raise ValueError(f"{place} has no `context` of titles and sentences; expected a row of HotpotQA") from None
    return [f"Passage {number} - {title}:\n{text}" for number, (title, text) in enumerate(texts, 1) if text]


def _titled_passages(context: Json) -> list[tuple[Json, Json]]:
    """The titles and the sentences: of an object with two lists (Hub), or of a list of pairs (original)."""
    if isinstance(context, dict):
        return list(zip(expect_list(context["title"]), expect_list(context["sentences"]), strict=True))
    pairs = [expect_list(pair) for pair in expect_list(context)]
    return [(title, sentences) for title, sentences in pairs]


def _joined(sentences: Json) -> str:
    texts = [expect_text(sentence).strip() for sentence in expect_list(sentences)]
    return " ".join(text for text in texts if text)


def _text(place: str, row: Row, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} has no text `{name}`; expected a row of HotpotQA's validation split")
    return text.strip()
