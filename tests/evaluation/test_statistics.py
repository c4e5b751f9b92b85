"""Means, differences and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem.evaluation.analysis import analyse
from mlx_deltamem.evaluation.statistics import Bootstrap, Estimate
from tests.evaluation.runs import Small

GENERATOR = np.random.default_rng(0)


def alone(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def test_the_interval_of_a_mean_is_what_theory_says():
    scores = (GENERATOR.random((1, 400)) < 0.3).astype(float)
    found = Bootstrap(scores, alone(400), seed=1).mean(0)
    p = scores.mean()
    half = 100 * 1.96 * np.sqrt(p * (1 - p) / 400)
    assert found.value == pytest.approx(100 * p)
    assert found.low == pytest.approx(100 * p - half, abs=0.6)
    assert found.high == pytest.approx(100 * p + half, abs=0.6)
    assert found.questions == 400


def test_differences_are_paired():
    hard = GENERATOR.random(300)
    # The second condition is right wherever the first is, and now and then besides.
    scores = np.stack([hard < 0.5, hard < 0.55]).astype(float)
    bootstrap = Bootstrap(scores, alone(300), seed=1)
    difference = bootstrap.difference(1, 0)
    assert difference.value == pytest.approx(bootstrap.mean(1).value - bootstrap.mean(0).value)
    assert difference.low >= 0
    # Far narrower than of two unpaired samples.
    assert difference.high - difference.low < 0.6 * (bootstrap.mean(1).high - bootstrap.mean(1).low)
    assert bootstrap.difference(0, 0) == Estimate(0.0, 0.0, 0.0, 300)


def test_questions_of_a_group_are_drawn_together():
    by_group = GENERATOR.random(40) < 0.5
    scores = np.repeat(by_group, 10)[None].astype(float)
    groups = [str(index // 10) for index in range(400)]
    clustered, independent = (Bootstrap(scores, each, seed=0).mean(0) for each in (groups, alone(400)))
    assert clustered.value == independent.value
    # All questions of a group are alike, so 400 are worth 40: the interval is wider by the root of 10.
    assert (clustered.high - clustered.low) / (independent.high - independent.low) == pytest.approx(10**0.5, rel=0.1)


def test_groups_of_different_size_count_by_question():
    scores = np.array([[1.0, 1.0, 1.0, 0.0]])
    # Resamples are of both groups (75), of the large one twice (100), and of the small one twice (0).
    assert Bootstrap(scores, ["a", "a", "a", "b"], seed=0).mean(0) == Estimate(75.0, 0.0, 100.0, 4)


def test_a_single_group_is_drawn_by_question():
    scores = np.array([[1.0, 0.0, 1.0, 0.0] * 5])
    found = Bootstrap(scores, ["a"] * 20, seed=0).mean(0)
    assert found == Bootstrap(scores, alone(20), seed=0).mean(0)
    assert found.low < 50 < found.high


@pytest.mark.slow
def test_scores_that_are_all_alike_leave_a_doubt():
    none, all_of_them = (Bootstrap(np.full((1, 500), score), alone(500), seed=0).mean(0) for score in (0.0, 1.0))
    # None of 500: at most 0.735 %, as tables of Clopper and Pearson's intervals have it.
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(0.735, abs=1e-3)
    assert (all_of_them.value, all_of_them.high) == (100, 100)
    assert all_of_them.low == pytest.approx(100 - none.high)
    # Of questions about 5 histories, there are 5 trials.
    few = Bootstrap(np.zeros((1, 500)), [str(index % 5) for index in range(500)], seed=0)
    assert few.mean(0).high == pytest.approx(52.2, abs=0.05)
    assert few.difference(0, 0) == Estimate(0.0, 0.0, 0.0, 500)
    # Neither of them.
    half = Bootstrap(np.full((1, 10), 0.5), alone(10), seed=0).mean(0)
    assert half == Estimate(50.0, 50.0, 50.0, 10)


def test_the_seed_decides():
    scores = GENERATOR.random((2, 30))
    assert Bootstrap(scores, alone(30), 1).mean(0) == Bootstrap(scores, alone(30), 1).mean(0)
    assert Bootstrap(scores, alone(30), 1).mean(0) != Bootstrap(scores, alone(30), 2).mean(0)


@settings(max_examples=25)
@given(st.lists(st.sampled_from((0.0, 0.25, 1.0)), min_size=1, max_size=30), st.integers(1, 5))
def test_the_mean_is_within_its_interval(scores, groups):
    found = Bootstrap(np.array([scores]), [str(i % groups) for i in range(len(scores))], 0, resamples=700).mean(0)
    assert 0 <= found.low <= found.high <= 100
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9 or len(scores) < 8


# Results from records.


def record(question: int, condition: str, right: float, seed: int = 0, **other) -> dict:
    row = {
        "task": "small",
        "condition": condition,
        "seed": seed,
        "id": str(question),
        "group": str(question),
        "category": ("one", "two")[question % 2],
        "labels": {"level": question, "kind": f"kind {question % 2}"},
        "reply": condition if right else "",
        "ending": "length" if right else "end",
        "scores": {"right": right, "length": 0.5},
    }
    return row | other


def test_means_by_category_and_label():
    rows = [record(q, "state", float(q % 2)) for q in range(20)] + [record(q, "none", 0.0) for q in range(20)]
    found = analyse(Small(), rows, ["state", "none"], 0)
    assert found.metrics == ("right", "length")
    assert found.whole.means["state", "right"].value == 50
    assert found.whole.means["state", "length"] == Estimate(50.0, 50.0, 50.0, 20)
    assert [(each.name, each.means["state", "right"].value) for each in found.categories] == [("one", 0), ("two", 100)]
    assert [each.means["state", "right"].value for each in found.breakdowns["kind"]] == [0, 100]
    assert found.whole.differences["state", "none"].value == 50
    assert found.whole.differences.keys() == {("state", "none")}
    assert found.cut == {"state": 0.5, "none": 0.0}
    assert found.distinct_replies == {("state", "none"): 0.5}


def test_curves_have_points_of_equally_many_questions():
    rows = [record(q, "state", float(q < 20)) for q in range(80)]
    (curve,) = analyse(Small(), rows, ["state"], 0).curves
    assert curve.label == "level"
    assert [each.questions for each in curve.conditions["state"]] == [10] * 8
    assert [each.value for each in curve.conditions["state"]] == [100, 100, 0, 0, 0, 0, 0, 0]
    assert curve.places == tuple(4.5 + 10 * point for point in range(8))


def test_a_label_of_few_values_has_a_point_for_each():
    rows = [record(q, "state", 1.0, labels={"level": q % 3} if q else {}) for q in range(10)]
    (curve,) = analyse(Small(), rows, ["state"], 0).curves
    assert curve.places == (0, 1, 2)
    assert [each.questions for each in curve.conditions["state"]] == [3, 3, 3]
    assert analyse(Small(), [record(1, "state", 1.0), record(1, "none", 1.0)], ["state", "none"], 0).curves == ()


def test_seeds_are_averaged_for_each_question():
    rows = [record(q, "state", float(q < 2 * seed), seed) for q in range(10) for seed in (1, 2, 3)]
    found = analyse(Small(), rows, ["state"], 0)
    assert found.by_seed == {"state": {1: 20.0, 2: 40.0, 3: 60.0}}
    assert found.whole.means["state", "right"].value == pytest.approx(40)
    assert found.whole.means["state", "right"].questions == 10


def test_scores_are_taken_by_their_names():
    """A task of the harness may have a metric under one condition only."""
    rows = [record(q, name, 0.5) for q in range(4) for name in ("state", "none")]
    for row in rows:
        row["scores"] = {"more": 1.0, "right": 0.0} if row["condition"] == "state" else {"right": 1.0}
    found = analyse(Small(), rows, ["state", "none"], 0)
    assert found.metrics == ("right",)
    assert [found.whole.means[name, "right"].value for name in ("state", "none")] == [0, 100]


def test_some_categories_are_outside_of_the_mean(monkeypatch):
    monkeypatch.setattr(Small, "outside_mean", ("two",))
    rows = [record(q, "state", float(q % 2)) for q in range(20)]
    found = analyse(Small(), rows, ["state"], 0)
    assert found.whole.means["state", "right"].value == 0
    assert found.by_seed == {"state": {0: 0.0}}
    assert found.categories[1].means["state", "right"].value == 100
    cut = [row | {"ending": "length" if row["category"] == "two" else "end"} for row in rows]
    assert analyse(Small(), cut, ["state"], 0).cut == {"state": 0.0}
    # Nothing else was asked.
    assert analyse(Small(), rows[1::2], ["state"], 0).whole.means["state", "right"].value == 100
