"""The text that a baseline puts in place of the history, with its evidence and its costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.evaluation.baselines.baseline import RETRIEVAL, Baseline, Kind
from mlx_deltamem.evaluation.baselines.retrieval import Bm25Index, DenseIndex, Index, best
from mlx_deltamem.evaluation.baselines.summary import running_summary
from mlx_deltamem.evaluation.baselines.turns import oldest_first, text_bytes, turn_texts, with_text, with_turns
from mlx_deltamem.evaluation.effects import state_bytes
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.sessions.text.token_ids import token_ids


@dataclass(frozen=True)
class Shown:
    """A question with the text that a baseline shows in place of the history.

    Attributes:
        question: The question; the history in its text is what is shown.
        turns: The indices of the turns that are shown; None for a summary.
        kept_bytes: The bytes that the baseline keeps between the history and the question.
        told_seconds: The time for taking in the history: its index, or its summary.
        found_seconds: The time for choosing the text once the question is there.
    """

    question: Question
    turns: tuple[int, ...] | None
    kept_bytes: int
    told_seconds: float = 0.0
    found_seconds: float = 0.0


@dataclass(frozen=True)
class _Kept:
    """An index or a summary of a history, which a baseline keeps, with its bytes and the seconds that it took."""

    index: Index | None
    summary: str
    bytes: int
    seconds: float


class Showing:
    """Chooses what questions are shown. Indices and summaries are made once for the questions of a group.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        dense_model: The folder or Hub repo of the model of model2vec for `dense`.
        step: The most tokens in one call of the model, for summaries.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, dense_model: str | None, step: int):
        self._model = model
        self._tokenizer = tokenizer
        self._dense_model = dense_model
        self._step = step
        self._kept: dict[tuple[str, Baseline], _Kept] = {}
        # The bytes of a memory do not depend on its content.
        self.memory_bytes = state_bytes(make_prompt_cache(model)[-1].cache)

    def show(self, question: Question, baseline: Baseline) -> Shown:
        """Choose what a question is shown.

        Raises:
            FileNotFoundError: There is no model for `dense`.
            ValueError: The data do not say where the evidence is (`oracle`), a package is not installed, or the chat
                template refuses the prompt of a summary.
        """
        if baseline.kind is Kind.SUMMARY:
            return self._summarised(question, baseline)
        if baseline.kind in RETRIEVAL:
            return self._retrieved(question, baseline)
        if baseline.kind is Kind.ORACLE:
            turns = check_evidence(question)
            return Shown(with_turns(question, turns), turns, text_bytes(question))
        turns = self._newest(question, baseline.amount)
        shown = with_turns(question, turns)
        return Shown(shown, turns, text_bytes(shown))

    def _summarised(self, question: Question, baseline: Baseline) -> Shown:
        kept = self._of_group(question, baseline)
        shown = with_text(question, f"A summary of our conversation so far: {kept.summary}") if kept.summary else None
        return Shown(shown or with_turns(question, ()), None, kept.bytes, kept.seconds)

    def _retrieved(self, question: Question, baseline: Baseline) -> Shown:
        kept = self._of_group(question, baseline)
        begun = time.perf_counter()
        query = question.query or question.question
        turns = (
            ()
            if kept.index is None
            else tuple(best(kept.index.scores(query), baseline.amount or 0, oldest_first(question)))
        )
        seconds = time.perf_counter() - begun
        return Shown(with_turns(question, turns), turns, kept.bytes, kept.seconds, seconds)

    def _newest(self, question: Question, tokens: int | None) -> tuple[int, ...]:
        """The indices of the newest whole turns that fit into some tokens of text; None: into the memory's bytes."""
        texts, order = turn_texts(question), oldest_first(question)
        first, size = len(order), 0
        while first:
            if tokens is None:
                size = text_bytes(with_turns(question, order[first - 1 :]))
            else:
                size += len(token_ids(self._tokenizer, texts[order[first - 1]]))
            if size > (self.memory_bytes if tokens is None else tokens):
                break
            first -= 1
        return tuple(sorted(order[first:]))

    def _of_group(self, question: Question, baseline: Baseline) -> _Kept:
        # All numbers of turns share one index.
        key = question.group, Baseline(baseline.kind) if baseline.kind in RETRIEVAL else baseline
        if key not in self._kept:
            self._kept[key] = self._make(question, baseline, turn_texts(question))
        return self._kept[key]

    def _make(self, question: Question, baseline: Baseline, texts: Sequence[str]) -> _Kept:
        begun = time.perf_counter()
        if baseline.kind is Kind.SUMMARY:
            most = baseline.amount or 0
            told = [texts[index] for index in oldest_first(question)]
            summary, _ = running_summary(self._model, self._tokenizer, told, most, self._step)
            return _Kept(None, summary, len(summary.encode()), time.perf_counter() - begun)
        if not texts:
            return _Kept(None, "", text_bytes(question), 0.0)
        index = Bm25Index(texts) if baseline.kind is Kind.BM25 else DenseIndex(texts, self._dense_model or "")
        seconds = time.perf_counter() - begun
        return _Kept(index, "", text_bytes(question) + index.kept_bytes(), seconds)


def check_evidence(question: Question) -> tuple[int, ...]:
    """The turns that hold the evidence of a question.

    Raises:
        ValueError: The data do not say.
    """
    if question.evidence is None:
        raise ValueError(
            f"the condition oracle needs the turns that hold the evidence, and the data do not say them for the "
            f"question {question.id!r}; leave oracle out of --conditions"
        )
    return question.evidence
