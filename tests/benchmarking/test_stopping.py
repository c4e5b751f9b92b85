"""The sequential rule, with timings that are given and not measured."""

import pytest

from mlx_deltamem.benchmarking.models import DELTA_MEM, FROZEN, FROZEN_AGAIN
from mlx_deltamem.benchmarking.paired import Sample, interleave
from mlx_deltamem.benchmarking.stopping import StoppingRule


class Timings:
    """Trials with given times, and a clock that runs as long as they take."""

    def __init__(self, times: dict[str, list[float]]):
        self.times = times
        self.seconds = 0.0
        self.taken = dict.fromkeys(times, 0)

    def trial(self, name: str) -> Sample:
        values = self.times[name]
        # The first round is that to warm up. It is slow here, and must not count.
        cpu = 9.0 if not self.taken[name] else values[(self.taken[name] - 1) % len(values)]
        self.taken[name] += 1
        self.seconds += cpu
        return Sample(cpu_seconds=cpu)

    def rounds(self, rule: StoppingRule, most: int = 200) -> int:
        trials = {name: lambda name=name: self.trial(name) for name in self.times}
        samples = interleave(trials, most, is_enough=rule.begin(lambda: self.seconds))
        assert len({len(taken) for taken in samples.values()}) == 1
        return len(samples[FROZEN])


def timings(ratio: float, scatter: float) -> Timings:
    """The variant takes `ratio` of the frozen backbone, plus or minus `scatter` in every other round."""
    return Timings({FROZEN: [1.0], FROZEN_AGAIN: [1.0], DELTA_MEM: [ratio - scatter, ratio + scatter]})


def rule(**changes: float) -> StoppingRule:
    return StoppingRule(**{"variant": DELTA_MEM, "quantity": "cpu_seconds", "target": 1.03, "least": 8} | changes)


def test_a_quiet_machine_needs_the_fewest_rounds():
    assert timings(1.03, 0.0).rounds(rule(seconds=1e9)) == 8


def test_a_result_far_from_the_target_needs_the_fewest_rounds_although_it_is_noisy():
    assert timings(1.40, 0.05).rounds(rule(seconds=1e9)) == 8
    assert timings(0.70, 0.05).rounds(rule(seconds=1e9)) == 8


def test_a_result_near_the_target_gets_rounds_until_it_is_precise():
    # The interquartile range is 0.02, so the noise is 1.57 * 0.02 / √n, which is at most 0.004 from 62 rounds on. The
    # rule looks after 8, 12, 18, 27, 40, 60 and 90 rounds.
    assert timings(1.03, 0.01).rounds(rule(seconds=1e9)) == 90


def test_less_precision_needs_fewer_rounds():
    assert timings(1.03, 0.01).rounds(rule(seconds=1e9, width=0.01)) == 12


def test_without_a_target_only_the_precision_counts():
    assert timings(1.40, 0.01).rounds(rule(target=None, seconds=1e9)) == 90


def test_the_time_ends_it_but_not_before_the_fewest_rounds():
    # A round takes 3.03 seconds, and the round to warm up 27.
    assert timings(1.03, 0.03).rounds(rule(seconds=27 + 50)) == 17
    assert timings(1.03, 0.03).rounds(rule(seconds=0.0)) == 8


def test_the_most_rounds_end_it():
    assert timings(1.03, 0.05).rounds(rule(seconds=1e9), most=20) == 20


@pytest.mark.parametrize("again", [1.02, 0.98])
def test_a_frozen_backbone_that_differs_from_itself_is_not_precise(again):
    shifted = timings(1.03, 0.0)
    shifted.times[FROZEN_AGAIN] = [again]
    assert shifted.rounds(rule(seconds=1e9), most=50) == 50
