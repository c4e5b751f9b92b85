"""The variants at one task, measured side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import mlx.nn as nn
from mlx_lm.generate import generation_stream, wired_limit

from mlx_deltamem.benchmarking.models import FROZEN, FROZEN_AGAIN, VARIANTS, Models
from mlx_deltamem.benchmarking.paired import Quartiles, Ratio, Sample, compare, interleave
from mlx_deltamem.benchmarking.workloads import Workload
from mlx_deltamem.sessions.read import Progress

_TIMES = ("wall_seconds", "cpu_seconds")


@dataclass(frozen=True)
class Comparison:
    """The variants at one task.

    Attributes:
        phase: `prefill` or `decode`.
        prompt_tokens: The length of the prompt, which is the context that decoding starts from.
        tokens: How many tokens a sample is of, over all rows of the batch.
        samples: By variant, one for each round.
    """

    phase: str
    prompt_tokens: int
    tokens: int
    samples: Mapping[str, list[Sample]]

    @property
    def quantities(self) -> tuple[str, ...]:
        """What of a sample can be compared: while tokens are decoded, the contexts of all variants are in memory."""
        return (*_TIMES, "peak_bytes") if self.phase == "prefill" else _TIMES

    def values(self, variant: str, quantity: str) -> list[float]:
        """A quantity of each round."""
        return [getattr(sample, quantity) for sample in self.samples[variant]]

    def tokens_per_second(self, variant: str) -> Quartiles:
        """Throughput by the clock on the wall."""
        return Quartiles.of([self.tokens / seconds for seconds in self.values(variant, "wall_seconds")])

    def ratio(self, variant: str, quantity: str) -> Ratio:
        """How many times as much as the frozen backbone a variant takes."""
        return compare(*(self.values(name, quantity) for name in (variant, FROZEN, FROZEN_AGAIN)))


@dataclass(frozen=True)
class Bench:
    """What is measured how.

    Attributes:
        models: The models to compare.
        rounds: How many samples of each variant are wanted.
        variants: Which ones; both of the frozen backbone must be among them.
        warm_up: Whether a round that is not counted comes first.
    """

    models: Models
    rounds: int
    variants: tuple[str, ...] = VARIANTS
    warm_up: bool = True

    def prefill(self, workload: Workload, progress: Progress | None = None) -> Comparison:
        """Read the prompts with each variant."""
        samples = self._samples(workload.prefill, progress)
        for name in (FROZEN, FROZEN_AGAIN):
            # As if the adapter were not in this process at all.
            samples[name] = [
                replace(sample, peak_bytes=sample.peak_bytes - self.models.adapter_bytes) for sample in samples[name]
            ]
        return Comparison("prefill", workload.prompts.shape[1], workload.prompts.size, samples)

    def decode(self, workload: Workload, progress: Progress | None = None) -> Comparison:
        """Generate tokens after the prompts with each variant; each model reads the prompts once."""
        contexts = {id(model): workload.context(model) for model in (self.models.frozen, self.models.attached)}
        samples = self._samples(lambda model: workload.decode(model, contexts[id(model)]), progress)
        batch, length = workload.prompts.shape
        return Comparison("decode", length, batch * workload.generation_tokens, samples)

    def _samples(self, work: Callable[[nn.Module], Sample], progress: Progress | None) -> dict[str, list[Sample]]:
        trials = {name: partial(self.models.run, name, work) for name in self.variants}
        # As mlx-lm's own commands do.
        with wired_limit(self.models.frozen, [generation_stream]):
            return interleave(trials, self.rounds, self.warm_up, progress)
