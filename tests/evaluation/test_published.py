"""The published scores: their metrics, categories and conditions exist, and some of them are as published."""

import pytest

from mlx_deltamem.evaluation.conditions import CONDITIONS
from mlx_deltamem.evaluation.published import published_scores
from mlx_deltamem.evaluation.tasks.locomo_data import CATEGORIES
from mlx_deltamem.evaluation.tasks.mab_data import SPLITS
from mlx_deltamem.evaluation.tasks.registry import TASKS

HARNESS = ("ifeval", "gpqa_diamond", "gsm8k", "humaneval", "arc_easy", "arc_challenge", "mmlu")


@pytest.mark.parametrize(
    ("task", "count", "metrics", "categories"),
    [
        ("locomo", 30, {"f1"}, set(CATEGORIES.values()) - {"adversarial"}),
        ("mab", 20, {"score"}, {"test_time_learning"}),
        ("hotpotqa", 28, {"em", "f1"}, {"bridge", "comparison"}),
        ("recall", 0, set(), set()),
    ],
)
def test_metrics_and_categories_exist(task, count, metrics, categories):
    scores = TASKS[task]().published
    assert scores == published_scores(task) and len(scores) == count
    assert {score.metric for score in scores} == metrics
    assert {score.category for score in scores} - {""} == categories
    assert categories <= {*CATEGORIES.values(), *SPLITS.values(), "bridge", "comparison"}


def test_every_score_has_a_condition_and_a_source():
    for task in (*TASKS, *HARNESS):
        for score in published_scores(task):
            assert score.condition in ("", *CONDITIONS) and score.source and 0 <= score.value <= 100
    assert all(score.condition in ("", "base", "full") for task in HARNESS for score in published_scores(task))
    assert all(map(published_scores, HARNESS)) and published_scores("chess") == ()


@pytest.mark.parametrize(
    ("task", "method", "condition", "values"),
    [
        ("locomo", "δ-mem TSW", "full", [46.53, 37.79]),
        ("mab", "δ-mem SSW", "full", [37.84, 50.50]),
        ("hotpotqa", "δ-mem", "state", [6.48, 3.97, 15.20, 11.05, 31.70]),
        ("ifeval", "δ-mem TSW", "full", [82.99]),
        ("gpqa_diamond", "δ-mem SSW", "full", [41.41]),
        ("humaneval", "backbone", "base", [58.54]),
    ],
)
def test_scores_are_as_published(task, method, condition, values):
    scores = published_scores(task)
    assert [each.value for each in scores if (each.method, each.condition) == (method, condition)] == values


def test_the_published_mean_of_locomo_is_that_of_its_categories():
    counts = {"multi_hop": 282, "temporal": 321, "open_domain": 96, "single_hop": 841}
    msw = {score.category: score.value for score in published_scores("locomo") if score.method == "δ-mem MSW"}
    mean = sum(counts[name] * msw[name] for name in counts) / sum(counts.values())
    assert mean == pytest.approx(msw[""], abs=0.02)
