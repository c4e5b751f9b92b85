"""Measure several variants in rounds, and compare them by the ratios within each round.

Something that slows the machine down for a while affects neighbouring measurements alike, so ratios are taken within a
round. One variant is measured twice in each round: its ratios to itself show the noise of the machine.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

import mlx.core as mx
import numpy as np

from mlx_deltamem.sessions.reading.prefill import Progress


@dataclass
class Sample:
    """One measurement.

    Attributes:
        wall_seconds: Elapsed time, in seconds.
        cpu_seconds: Processor time of all threads of this process, in seconds.
        peak_bytes: The most memory that MLX held, including what it held before the measurement.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measured() -> Iterator[Sample]:
    """Measure the block. The sample that it yields is filled in when the block ends."""
    sample = Sample()
    mx.reset_peak_memory()
    wall, cpu = perf_counter(), process_time()
    yield sample
    sample.wall_seconds, sample.cpu_seconds = perf_counter() - wall, process_time() - cpu
    sample.peak_bytes = mx.get_peak_memory()


def interleave(
    trials: Mapping[str, Callable[[], Sample]],
    rounds: int,
    warm_up: bool = True,
    progress: Progress | None = None,
    is_enough: Callable[[Mapping[str, list[Sample]]], bool] | None = None,
) -> dict[str, list[Sample]]:
    """Run every trial once in each round.

    Args:
        trials: The measurements, by name.
        rounds: The number of samples of each trial, or the most of them.
        warm_up: Whether to run one more round first that does not count.
        progress: Called after each round with the number of rounds so far and in all.
        is_enough: Called after each round that counts, with the samples so far. If it returns True, there are no more
            rounds.

    Returns:
        By name, one sample for each round that counts.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in trials}
    for number in range(rounds + warm_up):
        for name in round_order(list(trials), number):
            samples[name].append(trials[name]())
        if progress is not None:
            progress(number + 1, rounds + warm_up)
        if warm_up and number == 0:
            samples = {name: [] for name in trials}
        elif is_enough is not None and is_enough(samples):
            break
    return samples


def round_order(names: Sequence[str], number: int) -> list[str]:
    """The order of the trials in a round: a row of a balanced Latin square (Williams 1949).

    In as many rounds as there are names, each name has every place once. If the number of names is even, each also
    follows every other one once.

    Args:
        names: The names of the trials.
        number: The number of the round, counted from 0.
    """
    count = len(names)
    zigzag = [(step + 1) // 2 if step % 2 else -step // 2 for step in range(count)]  # 0, 1, -1, 2, -2 ...
    return [names[(number + step) % count] for step in zigzag]


@dataclass(frozen=True)
class Quartiles:
    """The median of some values, and their interquartile range from `low` to `high`."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Quartiles":
        """The quartiles of some values, at least one."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(low, median, high)

    @property
    def range(self) -> float:
        """The width of the interquartile range."""
        return self.high - self.low


@dataclass(frozen=True)
class Ratio:
    """A variant compared with another one by their ratios, one for each round.

    Attributes:
        quartiles: The quartiles of the ratios.
        noise: The possible error of the median on this machine (see `compare`).
    """

    quartiles: Quartiles
    noise: float

    @property
    def is_clear(self) -> bool:
        """Whether the median differs from 1 by more than the noise."""
        return abs(self.quartiles.median - 1.0) > self.noise


def compare(values: Sequence[float], base: Sequence[float], base_again: Sequence[float]) -> Ratio:
    """Compare a variant with a base that was measured twice.

    The noise is the largest of three numbers: the uncertainty of the median ratio, the uncertainty of the base's median
    ratio to itself, and the distance of that median from 1. The uncertainty of a median of n values is 1.57
    interquartile ranges / √n, the notch of a box plot (McGill, Tukey and Larsen 1978).

    Args:
        values, base, base_again: For each round, a value above 0.
    """
    ratios, same = Quartiles.of(np.divide(values, base)), Quartiles.of(np.divide(base_again, base))
    uncertainty = 1.57 * max(ratios.range, same.range) / math.sqrt(len(base))
    return Ratio(ratios, max(uncertainty, abs(same.median - 1.0)))
