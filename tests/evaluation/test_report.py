"""The report, the results file and the figures, from made-up results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_deltamem.evaluation.analysis import Result, analyse
from mlx_deltamem.evaluation.conditions import CONDITIONS
from mlx_deltamem.evaluation.effects import Costs
from mlx_deltamem.evaluation.published import Published
from mlx_deltamem.evaluation.report import result_tables, write_report
from mlx_deltamem.evaluation.results import Evaluation, write_results
from tests.evaluation.runs import Small
from tests.evaluation.test_statistics import record

SHARES = {
    "base": 0.9,
    "full": 0.8,
    "replay": 0.85,
    "state": 0.6,
    "none": 0.05,
    "zeroed": 0.05,
    "shuffled": 0.1,
    "chat": 0.5,
    "chat-256": 0.7,
}


class Told(Small):
    """The small task with published scores."""

    name = "told"
    outside_mean = ("two",)

    @property
    def published(self) -> tuple[Published, ...]:
        return (
            Published("backbone", "base", "", "right", 40.79, "a paper | its table"),
            Published("δ-mem", "state", "two", "right", 9.62, "a paper"),
            Published("BM25", "", "", "right", 36.68, "a paper"),
            Published("backbone", "none", "", "length", 12.0, "a blog"),
            Published("backbone", "none", "", "speed", 3.0, "a blog"),
        )

    @property
    def differences(self) -> tuple[str, ...]:
        return ("Ours are other questions.",)


def result(task: Small, questions: int = 200, conditions: tuple[str, ...] = tuple(CONDITIONS)) -> Result:
    generator = np.random.default_rng(0)
    rows = [
        record(q, name, float(generator.random() < SHARES[name] * (0.5 if name == "state" and q > 100 else 1)))
        for name in conditions
        for q in range(questions)
    ]
    return analyse(task, rows, conditions, 0)


def evaluation(*results: Result) -> Evaluation:
    costs = {
        (each.task.name, name): Costs(123.4, 5.6, 10**9, 3, None, 0.0, 0.25)
        for each in results
        for name in each.conditions
    }
    return Evaluation("a model", "an adapter", {"told": {"questions": 200}}, results, costs)


def report(folder: Path, *results: Result) -> str:
    """The text of the report."""
    write_report(evaluation(*results), {"told": ["told.png"]}, folder / "report.md")
    return (folder / "report.md").read_text()


@pytest.mark.slow
def test_published_numbers_stand_beside_ours(tmp_path):
    text = report(tmp_path, result(Told()))
    own = result(Told()).whole.means["base", "right"]
    line = f"| backbone | all | right | 40.79 | base | {own.value:.1f} ({own.low:.1f} to {own.high:.1f}) |"
    assert f"{line} a paper \\| its table |" in text
    assert "| backbone | all | length | 12.00 | none | 50.0 (50.0 to 50.0) | a blog |" in text
    assert "| backbone | all | speed | 3.00 | none |  | a blog |" in text
    assert "| BM25 | all | right | 36.68 |  |  | a paper |" in text
    assert "| δ-mem | two | right | 9.62 | state | " in text
    assert "- Ours are other questions." in text
    assert "The means leave out: two." in text
    assert "| state | 123.4 | 5.6 | 1000 | – | 0 | 0.25 |" in text
    assert "![told.png](told.png)" in text
    assert "3 prompts under `state` were longer than the model's window." in text


@pytest.mark.slow
def test_clear_differences_are_bold(tmp_path):
    lines = report(tmp_path, result(Small())).splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ")[1] for line in lines if "−" in line}
    assert cells["| state − none"].startswith("**+") and cells["| state − none"].endswith("**")
    assert "**" not in cells["| zeroed − none"]
    rows = [record(q, name, q % 2) for name in ("none", "zeroed") for q in range(20)]
    same = report(tmp_path, analyse(Small(), rows, ["none", "zeroed"], 0))
    assert "| zeroed − none | +0.0 (+0.0 to +0.0) |" in same


def test_two_tasks_and_few_conditions(tmp_path):
    both = result(Small(), 6, ("state",)), result(Told(), 6, ("state", "none"))
    text = report(tmp_path, *both)
    assert text.count("## A small task") == 2 and text.count("### Differences") == 1
    write_results(evaluation(*both), tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert {row["task"] for row in document["results"]} >= {"small", "small, one", "told", "told, kind kind 0"}
    assert len(document["published"]) == 5 and len(document["costs"]) == 3


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"results": 3, "costs": [1], "settings": [], "differences": [{"task": 4}]}']
)
def test_earlier_tasks_stay_in_the_file(damaged, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(damaged)
    told, small = (evaluation(result(task, 6, ("state", "none"))) for task in (Told(), Small()))
    assert write_results(told, path) == []
    assert write_results(told, path) == []
    alone = json.loads(path.read_text())
    assert write_results(small, path) == ["told"]
    together = json.loads(path.read_text())
    for name in ("results", "differences", "costs", "published"):
        kept = [row for row in together[name] if row["task"].startswith("told")]
        assert kept == alone[name] and kept
        assert len(kept) < len(together[name]) or name == "published"
    # The new numbers of a task take the place of its old ones.
    write_results(small, path)
    assert json.loads(path.read_text()) == together


@pytest.mark.slow
def test_the_table_on_the_terminal():
    scores, differences = result_tables(result(Small()))
    assert [column.header for column in scores.columns] == ["questions", *CONDITIONS]
    assert list(scores.columns[0].cells) == ["all: 200", "one: 100", "two: 100", "kind kind 0: 100", "kind kind 1: 100"]
    assert next(iter(differences.columns[0].cells)) == "full − base"


@pytest.mark.slow
@pytest.mark.parametrize("conditions", [("state",), (*CONDITIONS, "chat-256")])
def test_the_figures_can_be_read(conditions, monkeypatch, tmp_path):
    figures = pytest.importorskip("tests.figures")
    plots = pytest.importorskip("mlx_deltamem.evaluation.figure")
    found = result(Small(), 200, conditions)
    for figure in (plots.scores_figure(found), plots.curves_figure(found)):
        shown = figures.assert_readable(figure, monkeypatch)
        assert {"right, %", *conditions} <= set(shown)
    for count in (1, 2, 3, 4):
        figure = plots.curves_figure(replace(found, curves=(found.curves * 4)[:count]))
        figures.assert_readable(figure, monkeypatch)
        # No room is left empty.
        assert len(figure.axes) == count
        figure.draw_without_rendering()
        assert max(axes.get_window_extent().x1 for axes in figure.axes[-1:]) > 0.9 * figure.bbox.x1
    many = [record(q, "state", q % 2, category=f"a long category {q % 25}") for q in range(50)]
    figures.assert_readable(plots.scores_figure(analyse(Small(), many, ["state"], 0)), monkeypatch)
    assert plots.draw(found, {}, tmp_path) == ["small.png", "small-curves.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"small.png", "small-curves.png"}
