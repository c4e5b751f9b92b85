"""The measured work: reading prompts of one length and generating tokens after them, in the way of mlx-lm."""

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, BatchGenerator, generate_step, generation_stream

from mlx_deltamem.benchmarking.paired import Sample, measured
from mlx_deltamem.core.cache import PromptCache, make_prompt_cache


@dataclass(frozen=True)
class Workload(ABC):
    """Prompts of one length, and the number of tokens to generate after each. Sampling is greedy.

    Attributes:
        prompts: `[B, N]` int, the tokens, with N at least 1.
        generation_tokens: The number of timed tokens of each row.
        prefill_step_size: The most prompt tokens in one call of the model.
    """

    prompts: mx.array
    generation_tokens: int
    prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE

    @abstractmethod
    def prefill(self, model: nn.Module) -> Sample:
        """Measure reading the prompts up to the first generated token."""

    @abstractmethod
    def context(self, model: nn.Module) -> list[PromptCache]:
        """The prompt caches after the prompts, one for each row. They can be used in any number of `decode` calls."""

    @abstractmethod
    def decode(self, model: nn.Module, context: list[PromptCache]) -> Sample:
        """Measure generating tokens from a context, which is not changed.

        The first token is not timed. It copies the context and starts the pipeline, in which the graph of each token is
        built while the token before is computed. The last token is not timed either, because the pipeline ends with it.
        """

    def caller(self, model: nn.Module) -> Callable[[], Sample]:
        """Read the prompts. The result calls the model with the next token of each row, and measures the call."""
        cache = make_prompt_cache(model)
        for begin in range(0, self.prompts.shape[1], self.prefill_step_size):
            logits = model(self.prompts[:, begin : begin + self.prefill_step_size], cache=cache)
            mx.eval(logits, [entry.state for entry in cache])
        tokens = mx.argmax(logits[:, -1:], axis=-1)

        def call() -> Sample:
            nonlocal tokens
            with measured() as sample:
                tokens = mx.argmax(model(tokens, cache=cache)[:, -1:], axis=-1)
                mx.eval(tokens)
            return sample

        return call


def workload(prompts: mx.array, generation_tokens: int, prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE) -> Workload:
    """The workload of one prompt or of a batch, as mlx-lm runs it. See `Workload` for the arguments."""
    kind = _Sequence if len(prompts) == 1 else _Batch
    return kind(prompts, generation_tokens, prefill_step_size)


class _Sequence(Workload):
    """One prompt, run by `generate_step`."""

    def prefill(self, model: nn.Module) -> Sample:
        mx.clear_cache()
        cache = make_prompt_cache(model)
        with measured() as sample:
            self._read(model, cache)
        return sample

    def context(self, model: nn.Module) -> list[PromptCache]:
        cache = make_prompt_cache(model)
        self._read(model, cache)
        return [cache]

    def decode(self, model: nn.Module, context: list[PromptCache]) -> Sample:
        mx.clear_cache()
        tokens = generate_step(
            self.prompts[0, -1:],
            model,
            max_tokens=self.generation_tokens + 2,
            prompt_cache=copy.deepcopy(context[0]),
        )
        next(tokens)
        with measured() as sample:
            for _ in range(self.generation_tokens):
                next(tokens)
        tokens.close()
        # The step in the pipeline must not run into the next measurement.
        mx.synchronize(generation_stream)
        return sample

    def _read(self, model: nn.Module, cache: PromptCache) -> None:
        steps = generate_step(
            self.prompts[0], model, max_tokens=0, prompt_cache=cache, prefill_step_size=self.prefill_step_size
        )
        deque(steps, maxlen=0)
        # The logits of the last token do not depend on what it writes.
        mx.eval([entry.state for entry in cache])


class _Batch(Workload):
    """Several prompts, run together by a `BatchGenerator`."""

    def prefill(self, model: nn.Module) -> Sample:
        mx.clear_cache()
        generator = self._generator(model)
        generator.insert(_tokens(self.prompts))
        with measured() as sample:
            generator.next_generated()
        _finish(generator)
        return sample

    def context(self, model: nn.Module) -> list[PromptCache]:
        generator = self._generator(model)
        # The generator returns the cache of a row when the row has all its tokens.
        generator.insert(_tokens(self.prompts), max_tokens=[1] * len(self.prompts))
        caches = [response.prompt_cache for response in generator.next_generated()]
        mx.eval([entry.state for cache in caches for entry in cache])
        _finish(generator)
        return caches

    def decode(self, model: nn.Module, context: list[PromptCache]) -> Sample:
        mx.clear_cache()
        generator = self._generator(model)
        generator.insert(_tokens(self.prompts[:, -1:]), caches=context)
        generator.next_generated()
        with measured() as sample:
            for _ in range(self.generation_tokens):
                generator.next_generated()
        _finish(generator)
        return sample

    def _generator(self, model: nn.Module) -> BatchGenerator:
        """A generator that runs all rows together. No row ends while it is timed."""
        rows = len(self.prompts)
        return BatchGenerator(
            model,
            max_tokens=self.generation_tokens + 2,
            completion_batch_size=rows,
            prefill_batch_size=rows,
            prefill_step_size=self.prefill_step_size,
        )


def _finish(generator: BatchGenerator) -> None:
    """Wait for the step in the pipeline, so that it does not run into the next measurement."""
    mx.synchronize(generator.stream)
    generator.close()


def _tokens(prompts: mx.array) -> list[list[int]]:
    return cast(list[list[int]], prompts.tolist())
