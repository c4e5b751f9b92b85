"""Ask a model questions under a condition. Each begins from a cache and a memory of its own."""

import copy
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
from mlx_deltamem.core.use import observing, read_only, using_spans
from mlx_deltamem.evaluation.chats import Chats
from mlx_deltamem.evaluation.conditions import Condition, Memory
from mlx_deltamem.evaluation.decoding import Reply, Start, generate_replies
from mlx_deltamem.evaluation.effects import Corrections, WriteGates, corrects_output, mean_norm
from mlx_deltamem.evaluation.measures import Measures
from mlx_deltamem.evaluation.prompts import Prompt, Prompts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.sampling import seeded_sampler
from mlx_deltamem.evaluation.task import Sampling
from mlx_deltamem.sessions.read import read, start_length, window, write_text
from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.sessions.turn import States
from mlx_deltamem.sessions.writing import ALL


@dataclass(frozen=True)
class Job:
    """A question to be asked once.

    Attributes:
        question: The question.
        seed: Of the reply's sampling, to which the question's index is added.
    """

    question: Question
    seed: int


@dataclass(frozen=True)
class Manner:
    """How questions are asked.

    Attributes:
        sampling: How replies are drawn.
        stop: Texts that end a reply.
        write: What is written where the condition leaves that open, one of `WRITES`: in chats, of each turn; else `all`
            writes prompts and replies as well as histories. None: `all` in chats, else `after`.
        reply_tokens: The longest reply of a chat before the question.
        prefill_step_size: The most tokens to run at a time.
        history_tokens: The most tokens of text that are seen while a history is read into the memory; None: as many as
            the model was made for.
    """

    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    write: str | None = None
    reply_tokens: int = 64
    prefill_step_size: int = 2048
    history_tokens: int | None = None


@dataclass
class _Beginning:
    """The last beginning of a prompt that was run: of which group under which condition, and the cache it left."""

    key: tuple[str, str]
    ids: list[int]
    cache: PromptCache


class Asker:
    """Asks questions of one task.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer, with a chat template.
        manner: How to ask.
        histories: For each group a question that has its history.
        partners: For each group the one whose memory it gets under `shuffled`.
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
        self._histories = histories
        self.partners = partners
        self._by_token = model.attachment.config.memory_write_granularity == "token"
        self._prompts = Prompts(tokenizer, self._by_token)
        self._written: dict[str, tuple[States, WriteGates]] = {}
        self._beginning: _Beginning | None = None
        write = ALL if manner.write is None else manner.write
        self._chats = Chats(model, tokenizer, write, manner.reply_tokens, manner.prefill_step_size)

    def prompt(self, question: Question, condition: Condition) -> Prompt:
        """The prompt of a question under a condition."""
        return self._prompts.prompt(question, condition.text, self._writes(condition))

    def ask(self, jobs: Sequence[Job], condition: Condition) -> tuple[list[Reply], Measures]:
        """Ask some questions, side by side.

        Returns:
            A reply to each, and what was measured on the way.
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
        measures.correction = corrections.sum
        measures.corrected = count * len(self._model.attachment.paths)
        measures.peak_memory = mx.get_peak_memory()
        return replies, measures

    def most_at_once(self, condition: Condition, wanted: int) -> int:
        """How many questions may be asked side by side.

        A pass that writes the means of messages must not be cut by the ends of other prompts.
        """
        return wanted if self._by_token or not self._writes(condition) else 1

    def _writes(self, condition: Condition) -> bool:
        return self._manner.write == ALL if condition.writes is None else condition.writes

    def _start(self, job: Job, condition: Condition, measures: Measures) -> Start:
        question = job.question
        prompt = self.prompt(question, condition)
        begun = time.perf_counter()
        cache = self._cache(question, condition, prompt, measures)
        measures.prompt_seconds += time.perf_counter() - begun
        measures.norm += mean_norm(cache[-1].cache)
        measures.beyond_window += prompt.length > (window(self._model) or math.inf)
        return Start(cache, prompt.own.ids, question.max_tokens, self._sampler(job))

    def _sampler(self, job: Job) -> Sampler:
        return seeded_sampler(self._manner.sampling, job.seed + job.question.index)

    def _cache(self, question: Question, condition: Condition, prompt: Prompt, measures: Measures) -> PromptCache:
        """A cache of a question's own, in which the beginning of its prompt has been run."""
        if not prompt.shared.ids:
            return self._empty_cache(question, condition, measures)
        key = (question.group, condition.name)
        if self._beginning is None or self._beginning.key != key or self._beginning.ids != prompt.shared.ids:
            self._beginning = None
            cache = self._empty_cache(question, condition, measures)
            measures.add_gates(self._read(cache, prompt.shared, self._writes(condition), measures))
            self._beginning = _Beginning(key, prompt.shared.ids, cache)
        # Copies share their arrays until one side writes.
        return copy.deepcopy(self._beginning.cache)

    def _empty_cache(self, question: Question, condition: Condition, measures: Measures) -> PromptCache:
        """A cache without text, with the memory that the condition says."""
        cache = make_prompt_cache(self._model)
        group = self.partners[question.group] if condition.memory is Memory.OTHER else question.group
        if condition.memory is not Memory.EMPTY:
            states = self._states(group, measures)
            zeroed = condition.memory is Memory.ZEROED
            cache[-1].cache = [mx.zeros_like(state) for state in states] if zeroed else list(states)
        return cache

    def _states(self, group: str, measures: Measures) -> States:
        """The memory after the history of a group, which is read once, from an empty memory."""
        if group not in self._written:
            history = self._prompts.history(self._histories[group])
            states, gates = make_prompt_cache(self._model)[-1].cache, WriteGates()
            if history.ids:
                step, seen = self._manner.prefill_step_size, self._seen_of(history)
                with observing(self._model, gates):
                    states = write_text(self._model, states, history, True, seen, step, gates.evaluate)
                measures.prompt_tokens += len(history.ids)
            self._written[group] = states, gates
        states, gates = self._written[group]
        # Of every question about it, so that it does not matter which condition comes first.
        measures.add_gates(gates)
        return states

    def _seen_of(self, history: Segments) -> int:
        """The most tokens of a history that are seen at once while it is written, beside the system prompt."""
        if self._manner.history_tokens is not None:
            return self._manner.history_tokens
        longest = window(self._model)
        return max(1, len(history.ids) if longest is None else longest - start_length(history))

    def _read(self, cache: PromptCache, segments: Segments, writing: bool, measures: Measures) -> WriteGates:
        """Run a text that others may share, without any logits; returns the gates of what was written."""
        gates = WriteGates()
        with observing(self._model, gates):
            step = self._manner.prefill_step_size
            read(self._model, cache, segments, writing, step, gates.evaluate, want_logits=False)
        measures.prompt_tokens += len(segments.ids)
        return gates

    def _spans(self, job: Job, condition: Condition) -> AbstractContextManager[None]:
        """Within it, the rest of one prompt is written by its spans, as one pass; a reply, token by token."""
        own = self.prompt(job.question, condition).own
        if max(own.message_ids) < 0:
            return nullcontext()
        spans = RunningSpans([own.message_ids], [own.sentence_ids], self._model.attachment.config)
        return using_spans(self._model, spans)
