"""Means and differences with 95 % intervals, by a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
# Resamples that are held in memory at a time.
_ROWS = 500
# The percentiles at the ends of the interval.
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A mean, or the difference of two means, in percent.

    Attributes:
        value: The estimate.
        low, high: The 95 % interval.
        questions: The number of questions.
    """

    value: float
    low: float
    high: float
    questions: int


class Bootstrap:
    """Resampled means of several conditions. Each resample has the same questions under all conditions.

    Groups of questions are drawn as a whole, because the scores of questions about one history are correlated. If
    there is only one group, single questions are drawn; the intervals then hold for that history only.

    If all scores of a condition are 0, or all are 1, all resamples are equal. The interval is then the exact one of a
    binomial distribution (Clopper and Pearson), with each drawn unit as one trial.

    Args:
        scores: `[C, Q]`, the scores of C conditions and Q questions, from 0 to 1.
        groups: The group of each question.
        seed: The seed of the resamples.
        resamples: The number of resamples.
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
        """The mean of a condition, given by its index."""
        lowest, highest = (float(extreme[condition]) for extreme in self._extremes)
        if lowest == highest and lowest in (0.0, 1.0):
            # At this share of successes, all trials succeed with a probability of 2.5 %.
            share = 100 * (_TAILS[0] / 100) ** (1 / self._units)
            low, high = (share, 100.0) if lowest else (0.0, 100 - share)
            return Estimate(100 * lowest, low, high, self._questions)
        return self._estimate(self._means[condition], self._resampled[condition])

    def difference(self, one: int, other: int) -> Estimate:
        """The mean of one condition minus the mean of another, both given by their indices."""
        return self._estimate(self._means[one] - self._means[other], self._resampled[one] - self._resampled[other])

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        low, high = np.percentile(resampled, _TAILS)
        return Estimate(100 * float(value), 100 * float(low), 100 * float(high), self._questions)


def mean_interval(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of a mean over the members of U units. Units are drawn as a whole.

    Args:
        sums: `[U]`, the sum over the members of each unit.
        counts: `[U]`, the number of members of each unit.
        seed: The seed of the resamples.
        resamples: The number of resamples.
    """
    resampled = _resample(sums[None], counts.astype(float), np.random.default_rng(seed), resamples)[0]
    low, high = np.percentile(resampled, _TAILS)
    return float(low), float(high)


def _resample(sums: np.ndarray, counts: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Draw units with replacement, R times: from `sums` `[C, U]` and `counts` `[U]` to the means `[C, R]`."""
    parts = []
    for begin in range(0, resamples, _ROWS):
        rows = min(_ROWS, resamples - begin)
        drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=rows)
        parts.append((sums @ drawn.T) / (counts @ drawn.T))
    return np.concatenate(parts, axis=1)
