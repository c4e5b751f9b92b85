"""HotpotQA with its distractors: questions whose answer takes two of ten passages (facts 4.3), https://hotpotqa.github.io."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.task import Backbone, Published, Task
from mlx_deltamem.evaluation.tasks.answers import first_line, span_tokens, squad_tokens, token_f1
from mlx_deltamem.evaluation.tasks.published import HOTPOTQA
from mlx_deltamem.evaluation.tasks.rows import Row, file_rows, hub_rows

_REPO = "hotpotqa/hotpot_qa"
_MAX_TOKENS = 32
_SHORT = "Reply with a short span or yes/no only.\n\n"
# The wording of the published runs.
_CONTEXT = "Answer the question using only the passages below.\n" + _SHORT
# Ours, where the passages are not in the text.
_NO_CONTEXT = "Answer the question using only the passages that you were told before.\n" + _SHORT
_QUESTION = "Question: {}\nAnswer:"
# What the official scorer takes for answers of one word, in full or not at all.
_WHOLE = ("yes", "no", "noanswer")


@dataclass(frozen=True)
class HotpotQA(Task):
    """Short answers from ten titled passages, two of which are needed."""

    name: ClassVar[str] = "hotpotqa"
    title: ClassVar[str] = "HotpotQA, distractor setting, validation split"
    source: ClassVar[str] = f"{_REPO} on the Hugging Face Hub (CC BY-SA 4.0), or a file of its rows"
    breakdowns: ClassVar[tuple[str, ...]] = ("level",)

    @property
    def published(self) -> tuple[Published, ...]:
        return HOTPOTQA

    @property
    def differences(self) -> tuple[str, ...]:
        return (
            "The scores `em` and `f1` are those of the published runs; `official_em` and `official_f1` are HotpotQA's "
            "own, where punctuation does not part words, and yes and no are right or wrong as a whole.",
            "No script of the published runs without the text is public: ours leaves the passages out of the prompt, "
            "and the memory has read them as messages, one each.",
        )

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """See `Task`; every question has passages of its own, and so is a group.

        Raises:
            FileNotFoundError: There are no such data.
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
        """Exact match and F1 of the first line: the published ones, and the official ones."""
        line, gold = first_line(reply), question.golds[0]
        em, f1 = _match(span_tokens(line), span_tokens(gold)) if line else (0.0, 0.0)
        official_em, official_f1 = official(line, gold) if line else (0.0, 0.0)
        return {"em": em, "f1": f1, "official_em": official_em, "official_f1": official_f1}


def official(line: str, gold: str) -> tuple[float, float]:
    """HotpotQA's own exact match and F1: where one of the two is yes, no or noanswer, it is that or nothing."""
    said, wanted = squad_tokens(line), squad_tokens(gold)
    em, f1 = _match(said, wanted)
    return (em, f1) if " ".join(said) not in _WHOLE and " ".join(wanted) not in _WHOLE else (em, em)


def _match(said: list[str], wanted: list[str]) -> tuple[float, float]:
    em = float(said == wanted)
    return em, em or token_f1(said, wanted)


def _rows(data: Path | None) -> Iterator[tuple[str, Row]]:
    return file_rows(data) if data else hub_rows(_REPO, "validation", "distractor/validation-*.parquet")


def _passages(place: str, row: Row) -> list[str]:
    """The passages, numbered and titled: of a row of the Hub (an object of lists) or the original (a list of pairs)."""
    context = row.get("context")
    try:
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        texts = [(title, " ".join(part.strip() for part in sentences if part.strip())) for title, sentences in pairs]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{place} has no `context` of titles and sentences; expected a row of HotpotQA") from None
    return [f"Passage {number} - {title}:\n{text}" for number, (title, text) in enumerate(texts, 1) if text]


def _text(place: str, row: Row, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} has no text `{name}`; expected a row of HotpotQA's validation split")
    return text.strip()
