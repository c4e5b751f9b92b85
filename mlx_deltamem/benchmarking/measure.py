"""Measure the variants side by side, reading prompts and generating tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream, wired_limit

from mlx_deltamem.benchmarking.models import FROZEN, FROZEN_AGAIN, READ_ONLY, VARIANTS, Models
from mlx_deltamem.benchmarking.paired import Quartiles, Ratio, Sample, compare, interleave
from mlx_deltamem.benchmarking.stopping import StoppingRule
from mlx_deltamem.benchmarking.workloads import Workload
from mlx_deltamem.sessions.reading.prefill import Progress

_TIMES = ("wall_seconds", "cpu_seconds")


@dataclass(frozen=True)
class PhaseComparison:
    """The samples of all variants in one phase.

    Attributes:
        phase: `prefill` or `decode`.
        prompt_tokens: The length of the prompts. Decoding starts after them.
        tokens: The number of tokens of a sample, over all rows of the batch.
        samples: By variant, one sample for each round.
    """

    phase: str
    prompt_tokens: int
    tokens: int
    samples: Mapping[str, list[Sample]]

    @property
    def quantities(self) -> tuple[str, ...]:
        """The attributes of `Sample` to compare. Peak memory has no meaning in `decode`: all contexts are in memory."""
        return (*_TIMES, "peak_bytes") if self.phase == "prefill" else _TIMES

    def values(self, variant: str, quantity: str) -> list[float]:
        """The values of a quantity, one for each round."""
        return [getattr(sample, quantity) for sample in self.samples[variant]]

    def tokens_per_second(self, variant: str) -> Quartiles:
        """The throughput by wall time."""
        return Quartiles.of([self.tokens / seconds for seconds in self.values(variant, "wall_seconds")])

    def ratio(self, variant: str, quantity: str) -> Ratio:
        """A variant's quantity divided by the frozen backbone's."""
        return compare(*(self.values(name, quantity) for name in (variant, FROZEN, FROZEN_AGAIN)))


@dataclass(frozen=True)
class Bench:
    """A measurement of variants in rounds.

    Attributes:
        models: The models to compare.
        rounds: The number of samples of each variant, or the most of them if there is a `rule`.
        variants: The variants to measure; both of the frozen backbone must be among them.
        warm_up: Whether to run one more round first that does not count.
        rule: When there are enough rounds; None: after `rounds`.
    """

    models: Models
    rounds: int
    variants: tuple[str, ...] = VARIANTS
    warm_up: bool = True
    rule: StoppingRule | None = None

    def prefill(self, workload: Workload, progress: Progress | None = None) -> PhaseComparison:
        """Read the prompts with each variant."""
        samples = self._samples(workload.prefill, progress)
        for name in (FROZEN, FROZEN_AGAIN):
            # The adapter is in the same process, but a frozen backbone would run without it.
            samples[name] = [
                replace(sample, peak_bytes=sample.peak_bytes - self.models.adapter_bytes) for sample in samples[name]
            ]
        return PhaseComparison("prefill", workload.prompts.shape[1], workload.prompts.size, samples)

    def decode(self, workload: Workload, progress: Progress | None = None) -> PhaseComparison:
        """Generate tokens after the prompts with each variant. Each model reads the prompts once."""
        contexts = {id(model): workload.context(model) for model in (self.models.frozen, self.models.attached)}
        samples = self._samples(lambda model: workload.decode(model, contexts[id(model)]), progress)
        batch, length = workload.prompts.shape
        return PhaseComparison("decode", length, batch * workload.generation_tokens, samples)

    def calls(self, workload: Workload, progress: Progress | None = None) -> PhaseComparison:
        """Call each variant with one token after the other, after the prompts. A sample is one call.

        This is what a call of the model costs: unlike in `decode`, nothing is prepared while the token before is
        computed, and the code of the other variants has run in between. `READ_ONLY` is not measured.
        """
        batch, length = workload.prompts.shape
        trials = {
            name: workload.caller(self.models.frozen if name in (FROZEN, FROZEN_AGAIN) else self.models.attached)
            for name in self.variants
            if name != READ_ONLY
        }
        return PhaseComparison("decode", length, batch, self._interleaved(trials, progress))

    def _samples(self, work: Callable[[nn.Module], Sample], progress: Progress | None) -> dict[str, list[Sample]]:
        trials = {name: partial(self.models.run, name, work) for name in self.variants}
        return self._interleaved(trials, progress)

    def _interleaved(
        self, trials: Mapping[str, Callable[[], Sample]], progress: Progress | None
    ) -> dict[str, list[Sample]]:
        is_enough = None if self.rule is None else self.rule.begin()
        # The commands of mlx-lm set the same limit.
        with wired_limit(self.models.frozen, [cast(mx.Stream, generation_stream)]):
            return interleave(trials, self.rounds, self.warm_up, progress, is_enough)
