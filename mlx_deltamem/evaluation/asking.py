"""Ask a model questions under a condition. Each question starts from a separate prompt cache and memory."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spans import RunningSpans
from mlx_deltamem.core.use import attachment_of, observing, read_only, using_spans
from mlx_deltamem.evaluation.baselines.showing import Showing, Shown
from mlx_deltamem.evaluation.baselines.turns import text_bytes, turn_texts
from mlx_deltamem.evaluation.beginnings import Beginnings
from mlx_deltamem.evaluation.chats import Chats
from mlx_deltamem.evaluation.conditions import Condition, Memory
from mlx_deltamem.evaluation.decoding import GeneratedReply, Start, generate_replies, seeded_sampler
from mlx_deltamem.evaluation.effects import Corrections, Measures, corrects_output, mean_norm
from mlx_deltamem.evaluation.histories import Histories, Written
from mlx_deltamem.evaluation.prompts import Prompt, Prompts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Sampling
from mlx_deltamem.sessions.reading.prefill import window
from mlx_deltamem.sessions.turns.writing import ALL


@dataclass(frozen=True)
class Job:
    """A question to ask once.

    Attributes:
        question: The question.
        seed: The sampling seed of the reply, to which the question's index is added.
    """

    question: Question
    seed: int


@dataclass(frozen=True)
class Manner:
    """How questions are asked.

    The fields are part of a run's settings file, except `prefill_step_size`.

    Attributes:
        sampling: How replies are drawn.
        stop: Texts that end a reply.
        write: What to write under conditions that leave it open, one of `WRITES`. In chats it applies to each turn.
            In other conditions histories are written, and `all` writes prompts and replies too. None means `all` in
            chats and `after` elsewhere.
        reply_tokens: The longest reply of a chat before the question, in tokens.
        prefill_step_size: The most tokens in one call of the model.
        history_tokens: The most tokens of text that are visible while a history is read into the memory. None: the
            model's window.
        dense_model: The folder or Hub repo of the model of model2vec for the conditions `dense`.
    """

    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    write: str | None = None
    reply_tokens: int = 64
    prefill_step_size: int = 2048
    history_tokens: int | None = None
    dense_model: str | None = None


class Asker:
    """Asks the questions of one task.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, with a chat template.
        manner: How to ask.
        histories: For each group, a question with the group's history.
        partners: For each group, the group that lends its memory under `shuffled`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        manner: Manner,
        histories: Mapping[str, Question],
        partners: Mapping[str, str],
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._manner = manner
        self.partners = partners
        self._attachment = attachment_of(model)
        self._by_token = self._attachment.config.memory_write_granularity == "token"
        self._prompts = Prompts(tokenizer, self._by_token)
        step = manner.prefill_step_size
        self._histories = Histories(model, self._prompts, histories, step, manner.history_tokens)
        self._showing = Showing(model, tokenizer, manner.dense_model, step)
        self._beginnings = Beginnings(model, step)
        write = ALL if manner.write is None else manner.write
        self._chats = Chats(model, tokenizer, write, manner.reply_tokens, manner.prefill_step_size)

    def prompt(self, question: Question, condition: Condition) -> Prompt:
        """The prompt of a question under a condition."""
        shown = self._shown(question, condition).question
        # The text that a baseline shows may depend on the question.
        return self._prompts.prompt(shown, condition.text, self._writes(condition), shown is question)

    def evidence(self, question: Question, condition: Condition) -> float | None:
        """The share of the turns with the evidence that are in the prompt. None if there are none, or it is unknown."""
        evidence = set(question.evidence or ())
        total = len(evidence) + question.evidence_cut
        if not condition.text or not total:
            return None
        turns = evidence if condition.baseline is None else self._shown(question, condition).turns
        return None if turns is None else len(evidence & set(turns)) / total

    def ask(self, jobs: Sequence[Job], condition: Condition) -> tuple[list[GeneratedReply], Measures]:
        """Ask questions as one batch.

        Returns:
            The replies in the order of the jobs, and the measures.
        """
        if condition.chat is not None:
            return self._chats.ask([(job.question, self._sampler(job)) for job in jobs], condition.chat)
        measures = Measures(prompts=len(jobs))
        mx.reset_peak_memory()
        starts = [self._start(job, condition, measures) for job in jobs]
        corrections, count = Corrections(), sum(len(start.ids) - 1 for start in starts)
        with ExitStack() as stack:
            if not self._writes(condition):
                stack.enter_context(read_only(self._model))
            elif not self._by_token:
                stack.enter_context(self._spans(jobs[0], condition))
            if corrects_output(self._model) and (self._writes(condition) or condition.memory is not Memory.EMPTY):
                stack.enter_context(observing(self._model, corrections))
            replies, stats = generate_replies(
                self._model,
                self._tokenizer,
                starts,
                self._manner.stop,
                self._manner.prefill_step_size,
                corrections.evaluate,
            )
        measures.prompt_tokens += stats.prompt_tokens
        measures.prompt_seconds += stats.prompt_time
        measures.reply_tokens, measures.reply_seconds = stats.generation_tokens, stats.decode_time
        measures.asked_seconds += stats.prompt_time + stats.decode_time
        measures.correction = corrections.sum
        measures.corrected = count * len(self._attachment.paths)
        measures.peak_memory = mx.get_peak_memory()
        return replies, measures

    def most_at_once(self, condition: Condition, wanted: int) -> int:
        """The number of questions that may form a batch, at most `wanted`.

        It is 1 if the means of messages are written: the ends of other prompts would cut such a pass.
        """
        return wanted if self._by_token or not self._writes(condition) else 1

    def _writes(self, condition: Condition) -> bool:
        return self._manner.write == ALL if condition.writes is None else condition.writes

    def _start(self, job: Job, condition: Condition, measures: Measures) -> Start:
        question = job.question
        shown = self._shown(question, condition)
        prompt = self.prompt(question, condition)
        measures.read_tokens += prompt.length
        begun = time.perf_counter()
        self._add_costs(question, condition, shown, measures)
        cache = self._cache(question, condition, prompt, measures)
        measures.prompt_seconds += time.perf_counter() - begun
        measures.norm += mean_norm(cache[-1].cache)
        measures.beyond_window += prompt.length > (window(self._model) or math.inf)
        return Start(cache, prompt.own.ids, question.max_tokens, self._sampler(job))

    def _sampler(self, job: Job) -> Sampler:
        return seeded_sampler(self._manner.sampling, job.seed + job.question.index)

    def _cache(self, question: Question, condition: Condition, prompt: Prompt, measures: Measures) -> PromptCache:
        """A separate cache for a question, after the shared beginning of its prompt."""
        if not prompt.shared.ids:
            return self._empty_cache(question, condition, measures)
        key = (question.group, condition.name)
        writing = self._writes(condition)
        return self._beginnings.after(
            key, prompt.shared, writing, lambda: self._empty_cache(question, condition, measures), measures
        )

    def _empty_cache(self, question: Question, condition: Condition, measures: Measures) -> PromptCache:
        """A cache without text, with the memory of the condition."""
        cache = make_prompt_cache(self._model)
        if condition.memory is not Memory.EMPTY:
            written = self._written(question, condition, measures)
            # Counted for every batch that uses the history, so that the order of the conditions has no effect.
            measures.add_gates(written.gates)
            zeroed = condition.memory is Memory.ZEROED
            states = written.states
            cache[-1].cache = [mx.zeros_like(state) for state in states] if zeroed else list(states)
        return cache

    def _written(self, question: Question, condition: Condition, measures: Measures) -> Written:
        group = self.partners[question.group] if condition.memory is Memory.OTHER else question.group
        return self._histories.written(group, measures)

    def _shown(self, question: Question, condition: Condition) -> Shown:
        """The question with the text that a condition puts before it."""
        if condition.baseline is not None:
            return self._showing.show(question, condition.baseline)
        return Shown(question, None, text_bytes(question) if condition.text else 0)

    def _add_costs(self, question: Question, condition: Condition, shown: Shown, measures: Measures) -> None:
        """Add the costs of a question that do not depend on its prompt."""
        measures.turns += len(turn_texts(question))
        measures.kept_bytes += shown.kept_bytes
        measures.memory_bytes += self._showing.memory_bytes
        measures.told_seconds += shown.told_seconds
        measures.asked_seconds += shown.found_seconds
        if condition.keeps_memory:
            written = self._written(question, condition, measures)
            measures.kept_bytes += written.bytes
            measures.told_seconds += written.seconds

    def _spans(self, job: Job, condition: Condition) -> AbstractContextManager[None]:
        """A context in which the rest of a prompt is written as one pass by spans, and the reply token by token."""
        own = self.prompt(job.question, condition).own
        if max(own.message_ids) < 0:
            return nullcontext()
        spans = RunningSpans([own.message_ids], [own.sentence_ids], self._attachment.config)
        return using_spans(self._model, spans)
