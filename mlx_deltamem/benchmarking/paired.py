"""Measure several variants side by side, round by round, and compare them pair by pair.

Whatever slows a machine down for a while slows down neighbours alike, so ratios are taken within a round. One variant
is there twice: how far it is from itself tells what the machine lets anyone see.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import mlx.core as mx
import numpy as np

from mlx_deltamem.sessions.read import Progress


@dataclass
class Sample:
    """One measured stretch of work.

    Attributes:
        wall_seconds: Seconds that went by.
        cpu_seconds: Seconds of processor time, of all threads of this process.
        peak_bytes: The most memory that MLX held at a time, whatever was there before included.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measured() -> Iterator[Sample]:
    """Measure what is done within it; the sample it gives is filled in at the end."""
    sample = Sample()
    mx.reset_peak_memory()
    wall, cpu = perf_counter(), process_time()
    yield sample
    sample.wall_seconds, sample.cpu_seconds = perf_counter() - wall, process_time() - cpu
    sample.peak_bytes = mx.get_peak_memory()


def interleave(
    trials: Mapping[str, Callable[[], Sample]], rounds: int, warm_up: bool = True, progress: Progress | None = None
) -> dict[str, list[Sample]]:
    """Run every trial once in each round.

    Args:
        trials: What to run, by name.
        rounds: How many samples of each are wanted.
        warm_up: Whether one more round comes first, which is not counted.
        progress: Told how many rounds are done, and of how many.

    Returns:
        By name, one sample for each round.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in trials}
    for number in range(rounds + warm_up):
        for name in round_order(list(trials), number):
            samples[name].append(trials[name]())
        if progress is not None:
            progress(number + 1, rounds + warm_up)
    return {name: taken[-rounds:] for name, taken in samples.items()}


def round_order(names: Sequence[str], number: int) -> list[str]:
    """The order of a round, a row of a balanced Latin square (Williams 1949).

    In as many rounds as there are names, each has every place once; where their number is even, each also follows every
    other one once.
    """
    count = len(names)
    zigzag = [(step + 1) // 2 if step % 2 else -step // 2 for step in range(count)]  # 0, 1, -1, 2, -2 ...
    return [names[(number + step) % count] for step in zigzag]


@dataclass(frozen=True)
class Quartiles:
    """The median of some values and, as their spread, the interquartile range from `low` to `high`."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        return cls(*map(float, np.quantile(values, (0.25, 0.5, 0.75))))

    @property
    def range(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Ratio:
    """How a variant compares with another one: the quartiles of its ratios, one for each round.

    Attributes:
        quartiles: Of the ratios.
        noise: How far from the truth their median may be, as this machine goes (`compare`).
    """

    quartiles: Quartiles
    noise: float

    @property
    def is_clear(self) -> bool:
        """Whether the median is further from 1 than the noise; otherwise the machine was too noisy to tell."""
        return abs(self.quartiles.median - 1.0) > self.noise


def compare(values: Sequence[float], base: Sequence[float], base_again: Sequence[float]) -> Ratio:
    """Compare two variants, given the second one twice.

    The noise is the largest of: the uncertainty of the median ratio, that of the second variant's ratios to itself,
    and how far their median is from 1. The uncertainty of a median of n is 1.57 interquartile ranges / √n, the notch of
    a box plot (McGill, Tukey and Larsen 1978).

    Args:
        values, base, base_again: One value above 0 for each round, of the same rounds.
    """
    ratios, same = Quartiles.of(np.divide(values, base)), Quartiles.of(np.divide(base_again, base))
    uncertainty = 1.57 * max(ratios.range, same.range) / math.sqrt(len(base))
    return Ratio(ratios, max(uncertainty, abs(same.median - 1.0)))
