"""Means with 95 % intervals, and those of differences, by a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
# Rows of resamples to hold at a time.
_ROWS = 500
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two, in percent.

    Attributes:
        value: The estimate.
        low, high: Its 95 % interval.
        questions: How many questions it is of.
    """

    value: float
    low: float
    high: float
    questions: int


class Bootstrap:
    """Resampled means of several conditions, the same questions of all in each resample.

    What is resampled are groups of questions, with all of their questions: questions about one history share its luck.
    Where there is one group only, it is the questions, and what is known is about that one history.

    Where all scores of a condition are 0, or all are 1, resamples are all alike: the interval is then the exact one of
    a binomial distribution (Clopper and Pearson), each unit that is drawn being one trial.

    Args:
        scores: `[C, Q]`, of C conditions and Q questions, from 0 to 1.
        groups: The group of each question.
        seed: Decides the resamples.
        resamples: How many.
    """

    def __init__(self, scores: np.ndarray, groups: Sequence[str], seed: int, resamples: int = RESAMPLES):
        self._questions = scores.shape[1]
        self._means = scores.mean(axis=1)
        names = sorted(set(groups))
        units = {name: unit for unit, name in enumerate(names)} if len(names) > 1 else None
        unit_of = np.array([units[group] for group in groups]) if units else np.arange(self._questions)
        counts = np.bincount(unit_of).astype(float)
        sums = np.stack([np.bincount(unit_of, row) for row in scores])
        self._units = len(counts)
        self._extremes = scores.min(axis=1), scores.max(axis=1)
        self._resampled = _resample(sums, counts, np.random.default_rng(seed), resamples)

    def mean(self, condition: int) -> Estimate:
        """The mean of a condition."""
        lowest, highest = (float(extreme[condition]) for extreme in self._extremes)
        if lowest == highest and lowest in (0.0, 1.0):
            # The share at which as many trials come out alike with a chance of 2.5 %.
            share = 100 * (_TAILS[0] / 100) ** (1 / self._units)
            return Estimate(100 * lowest, *((share, 100.0) if lowest else (0.0, 100 - share)), self._questions)
        return self._estimate(self._means[condition], self._resampled[condition])

    def difference(self, one: int, other: int) -> Estimate:
        """How much larger the mean of one condition is than that of another."""
        return self._estimate(self._means[one] - self._means[other], self._resampled[one] - self._resampled[other])

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        low, high = np.percentile(resampled, _TAILS)
        return Estimate(100 * float(value), 100 * float(low), 100 * float(high), self._questions)


def mean_interval(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of a mean over all members of U units, which are drawn as a whole.

    Args:
        sums: `[U]`, the sum over the members of each unit.
        counts: `[U]`, how many these are.
        seed: Decides the resamples.
        resamples: How many.
    """
    resampled = _resample(sums[None], counts.astype(float), np.random.default_rng(seed), resamples)[0]
    low, high = np.percentile(resampled, _TAILS)
    return float(low), float(high)


def _resample(sums: np.ndarray, counts: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """`[C, R]` means of units that are drawn with replacement; `sums` is `[C, U]` and `counts` `[U]`."""
    parts = []
    for begin in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - begin)
        drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=rows)
        parts.append((sums @ drawn.T) / (counts @ drawn.T))
    return np.concatenate(parts, axis=1)
