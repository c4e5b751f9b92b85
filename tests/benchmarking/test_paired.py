import math
import statistics
from collections import Counter
from itertools import pairwise

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.benchmarking.paired import Quartiles, Sample, compare, interleave, measured, round_order

seconds = st.floats(1e-3, 1e3)
rounds = st.lists(st.tuples(seconds, seconds, seconds), min_size=3, max_size=12)


@pytest.mark.parametrize("count", range(1, 9))
def test_each_variant_has_each_place_once(count):
    names = "abcdefgh"[:count]
    orders = [round_order(names, number) for number in range(count)]
    assert all(sorted(order) == list(names) for order in orders)
    assert all(sorted(place) == list(names) for place in zip(*orders, strict=True))


@pytest.mark.parametrize("count", [2, 4, 6])
def test_each_variant_follows_each_other_one_once(count):
    names = "abcdef"[:count]
    followers = Counter(pair for number in range(count) for pair in pairwise(round_order(names, number)))
    assert len(followers) == count * (count - 1)
    assert set(followers.values()) == {1}


@pytest.mark.parametrize(("warm_up", "kept"), [(True, [1, 2, 3]), (False, [0, 1, 2])])
def test_interleaving(warm_up, kept):
    ran, progress = [], []

    def trial(name: str) -> Sample:
        ran.append(name)
        return Sample(wall_seconds=ran.count(name) - 1)

    samples = interleave(
        {name: lambda name=name: trial(name) for name in "abcd"}, 3, warm_up, lambda *done: progress.append(done)
    )
    total = 3 + warm_up
    assert ran == [name for number in range(total) for name in round_order("abcd", number)]
    assert {name: [sample.wall_seconds for sample in taken] for name, taken in samples.items()} == dict.fromkeys(
        "abcd", kept
    )
    assert progress == [(done, total) for done in range(1, total + 1)]


def test_a_sample_is_of_what_ran_in_it():
    before = mx.zeros(1_000_000)
    mx.eval(before)
    with measured() as sample:
        mx.eval(mx.zeros(2_000_000) + 1)
    with measured() as idle:
        pass
    assert sample.wall_seconds > 0
    assert sample.cpu_seconds > 0
    assert sample.peak_bytes >= before.nbytes + 8_000_000
    assert idle.peak_bytes < sample.peak_bytes


@given(st.lists(seconds, min_size=2, max_size=20))
def test_quartiles(values):
    found = Quartiles.of(values)
    expected = statistics.quantiles(values, n=4, method="inclusive")
    assert [found.low, found.median, found.high] == pytest.approx(expected)
    assert found.range == pytest.approx(expected[2] - expected[0], abs=1e-9)


@given(rounds, st.lists(seconds, min_size=12, max_size=12))
def test_what_slows_a_whole_round_down_changes_nothing(taken, slowness):
    slowed = [[value * slow for value in row] for row, slow in zip(taken, slowness, strict=False)]
    plain, drifting = (compare(*zip(*values, strict=True)) for values in (taken, slowed))
    assert drifting.quartiles.median == pytest.approx(plain.quartiles.median)
    assert drifting.noise == pytest.approx(plain.noise)


def test_a_difference_beyond_the_noise_is_clear():
    ratio = compare([1.05, 2.10, 3.15], [1.0, 2.0, 3.0], [1.02, 2.0, 2.94])
    assert ratio.quartiles.median == pytest.approx(1.05)
    assert ratio.noise == pytest.approx(1.57 * 0.02 / math.sqrt(3))
    assert ratio.is_clear


@pytest.mark.parametrize(
    ("values", "again", "noise"),
    [
        # The frozen backbone is not like itself: scattered, or shifted.
        ([1.04] * 4, [0.96, 0.96, 1.04, 1.04], 1.57 * 0.08 / 2),
        ([1.04] * 4, [0.94] * 4, 0.06),
        # The ratios asked for are scattered themselves.
        ([1.00, 1.00, 1.08, 1.08], [1.0] * 4, 1.57 * 0.08 / 2),
    ],
)
def test_a_difference_within_the_noise_is_not(values, again, noise):
    ratio = compare(values, [1.0] * 4, again)
    assert ratio.quartiles.median == pytest.approx(1.04)
    assert ratio.noise == pytest.approx(noise)
    assert not ratio.is_clear


def test_more_rounds_tell_more():
    few, many = (compare([1.0, 1.08] * n, [1.0, 1.0] * n, [1.0, 1.0] * n) for n in (2, 50))
    assert not few.is_clear
    assert many.is_clear


def test_faster_can_be_clear_too():
    assert compare([0.9] * 3, [1.0] * 3, [1.01] * 3).is_clear
