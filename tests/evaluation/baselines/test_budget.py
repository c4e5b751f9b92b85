"""Bytes, tokens and seconds of each condition: the table, and the figure of scores against bytes."""

from dataclasses import replace

import numpy as np
import pytest

from mlx_deltamem.evaluation.analysis import Result, analyse
from mlx_deltamem.evaluation.budget import budget_section, budgets
from mlx_deltamem.evaluation.effects import Costs
from tests.evaluation.runs import Small
from tests.evaluation.test_statistics import record

# 10 turns of 100 bytes, a memory of 5,000, and 20 tokens a turn beside a question of 8.
CONDITIONS = {
    "base": (1_000, 208),
    "none": (0, 8),
    "state": (5_000, 8),
    "replay": (6_000, 208),
    "last": (1_000, 208),
    "last-100": (500, 108),
    "bm25-2": (1_400, 48),
    "bm25-2+state": (6_400, 48),
    "oracle": (1_000, 28),
    "summary-64": (250, 70),
    "bm25-all": (1_400, 208),
    "chat-30": (5_120, 40),
    "chat-100": (5_120, 40),
}


def measured() -> tuple[Result, dict[str, Costs]]:
    generator = np.random.default_rng(0)
    rows = [
        record(question, name, float(generator.random() < 0.1 + 0.07 * place))
        for place, name in enumerate(CONDITIONS)
        for question in range(60)
    ]
    costs = {
        name: replace(
            Costs(1.0, 1.0, 1, 0, None, 0.0, None),
            kept_bytes=kept,
            memory_bytes=5_000,
            turns=10,
            read_tokens=read,
            told_seconds=0.5,
            asked_seconds=0.25,
        )
        for name, (kept, read) in CONDITIONS.items()
    }
    return analyse(Small(), rows, list(CONDITIONS), 0), costs


def test_what_grows_with_the_history():
    found = budgets(*measured())
    assert {name: (round(each.long_bytes), round(each.long_tokens)) for name, each in found.items()} == {
        "base": (100_000, 20_800),
        "none": (0, 8),
        "state": (5_000, 8),
        "replay": (105_000, 20_800),
        # The newest text grows until it fills the bytes of the memory, or its tokens.
        "last": (5_000, 1_040),
        "last-100": (500, 108),
        "bm25-2": (140_000, 48),
        "bm25-2+state": (145_000, 48),
        "oracle": (100_000, 28),
        "summary-64": (250, 70),
        "bm25-all": (140_000, 20_800),
        "chat-30": (5_120, 40),
        "chat-100": (5_300, 100),
    }


def test_the_table():
    result, costs = measured()
    lines = budget_section(result, costs).splitlines()
    assert "| bm25-2+state | 6,400 | 145,000 | 48 | 48 | 0.5 | 0.25 |" in lines
    assert "| condition | bytes kept of 10 turns | bytes kept of 1,000 turns |" in lines[2]
    # A run of an older version has no such measures.
    older = {name: replace(each, kept_bytes=None) for name, each in costs.items()}
    assert budget_section(result, older) == budget_section(result, {}) == ""


@pytest.mark.slow
@pytest.mark.parametrize("names", [tuple(CONDITIONS), ("none",), ("state", "none")])
def test_the_figure_can_be_read(names, monkeypatch):
    figures = pytest.importorskip("tests.figures")
    plots = pytest.importorskip("mlx_deltamem.evaluation.bytes_figure")
    result, costs = measured()
    found = {name: each for name, each in budgets(result, costs).items() if name in names}
    texts = figures.assert_readable(plots.bytes_figure(result, found), monkeypatch)
    # Each condition is named once, and the axes have their units.
    assert all(texts.count(name) == 1 for name in names)
    assert "bytes kept" in texts and "histories of 10 turns, as measured" in texts
    if len(names) > 2:
        assert {"1 kB", "10 kB"} <= set(texts)
