"""What is measured: prompts of one length read, and tokens generated after them, the way mlx-lm's users do it."""

import copy
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, BatchGenerator, generate_step, generation_stream

from mlx_deltamem.benchmarking.paired import Sample, measured
from mlx_deltamem.core.cache import PromptCache, make_prompt_cache


@dataclass(frozen=True)
class Workload(ABC):
    """Prompts of one length, and how many tokens are to follow each. The sampler is mlx-lm's own, greedy.

    Attributes:
        prompts: `[B, N]` int, the tokens; N is 1 or more.
        generation_tokens: How many tokens of each row are timed.
        prefill_step_size: Prompt tokens to process at a time.
    """

    prompts: mx.array
    generation_tokens: int
    prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE

    @abstractmethod
    def prefill(self, model: nn.Module) -> Sample:
        """Read the prompts, until the first token is there."""

    @abstractmethod
    def context(self, model: nn.Module) -> list[PromptCache]:
        """The prompt caches after the prompts, one for each row, for any number of `decode`."""

    @abstractmethod
    def decode(self, model: nn.Module, context: list[PromptCache]) -> Sample:
        """Generate tokens from a context, which stays as it is.

        The first token is not timed: it copies the context, and starts the pipeline in which each token's graph is
        built while the one before is computed. Nor is the last one, behind which nothing is in the pipeline.
        """


def workload(prompts: mx.array, generation_tokens: int, prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE) -> Workload:
    """The workload of one prompt or of a batch, as mlx-lm runs it; arguments as in `Workload`."""
    kind = _Sequence if len(prompts) == 1 else _Batch
    return kind(prompts, generation_tokens, prefill_step_size)


class _Sequence(Workload):
    """One prompt, which runs through `generate_step`."""

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
        # The step that is under way must not run into the next measurement.
        mx.synchronize(generation_stream)
        return sample

    def _read(self, model: nn.Module, cache: PromptCache) -> None:
        steps = generate_step(
            self.prompts[0], model, max_tokens=0, prompt_cache=cache, prefill_step_size=self.prefill_step_size
        )
        deque(steps, maxlen=0)
        # What the last token writes is not part of its logits.
        mx.eval([entry.state for entry in cache])


class _Batch(Workload):
    """Several prompts, which run through a `BatchGenerator` side by side."""

    def prefill(self, model: nn.Module) -> Sample:
        mx.clear_cache()
        generator = self._generator(model)
        generator.insert(self.prompts.tolist())
        with measured() as sample:
            generator.next_generated()
        _finish(generator)
        return sample

    def context(self, model: nn.Module) -> list[PromptCache]:
        generator = self._generator(model)
        # A row's cache is handed out when the row has all its tokens.
        generator.insert(self.prompts.tolist(), max_tokens=[1] * len(self.prompts))
        caches = [response.prompt_cache for response in generator.next_generated()]
        mx.eval([entry.state for cache in caches for entry in cache])
        _finish(generator)
        return caches

    def decode(self, model: nn.Module, context: list[PromptCache]) -> Sample:
        mx.clear_cache()
        generator = self._generator(model)
        generator.insert(self.prompts[:, -1:].tolist(), caches=context)
        generator.next_generated()
        with measured() as sample:
            for _ in range(self.generation_tokens):
                generator.next_generated()
        _finish(generator)
        return sample

    def _generator(self, model: nn.Module) -> BatchGenerator:
        """A generator that runs all rows at once, and that no row leaves while it is timed."""
        rows = len(self.prompts)
        return BatchGenerator(
            model,
            max_tokens=self.generation_tokens + 2,
            completion_batch_size=rows,
            prefill_batch_size=rows,
            prefill_step_size=self.prefill_step_size,
        )


def _finish(generator: BatchGenerator) -> None:
    """Wait for the step that is under way, which must not run into the next measurement."""
    mx.synchronize(generator.stream)
    generator.close()
