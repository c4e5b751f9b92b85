import pytest

pytest.importorskip("matplotlib")

from mlx_deltamem.core.adapter import CURVES_FILE
from mlx_deltamem.training.figure import training_figure
from mlx_deltamem.training.monitor import Metrics, draw_curves
from tests.figures import assert_readable

NUMBERS = ("train_loss", "write_gate", "state_norm", "gradient_norm", "learning_rate")


def report(step: int, **other: float | None) -> dict[str, float | None]:
    return {"iteration": step, **dict.fromkeys(NUMBERS, 1 / step)} | other


def look(step: int, **other: float) -> dict[str, float]:
    return {"iteration": step, "val_loss": 2.0} | other


def lines(figure) -> dict[str, list[list[float]]]:
    return {axes.get_title(loc="left"): [list(line.get_ydata()) for line in axes.lines] for axes in figure.axes}


def test_every_number_is_drawn_at_its_step(monkeypatch):
    health = {"health_written": 1.0, "health_carried_read": 1.5, "health_carried_written": 1.25}
    rows = [look(0, val_answers=0.1, val_values=0.2, **health), report(10)]
    rows += [look(19, val_answers=0.3, val_values=0.6, **health), report(20)]
    figure = training_figure(rows, "a run")
    shown = assert_readable(figure, monkeypatch)
    assert {"a run: training, 20 steps", "training", "held out", "whole answers", "their values"} <= set(shown)
    assert lines(figure) == {
        "loss (nats a token)": [[0.1, 0.05], [2.0, 2.0]],
        "recall of held-out answers (share)": [[0.1, 0.3], [0.2, 0.6]],
        "β, mean over layers and history": [[0.1, 0.05]],
        "‖S‖ of an episode, all layers": [[0.1, 0.05]],
        "norm of the gradient, before clipping": [[0.1, 0.05]],
        "learning rate": [[0.1, 0.05]],
        "perplexity of plain English ÷ the frozen model's": [[1.0, 1.0], [1.5, 1.5], [1.25, 1.25]],
    }
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[10, 20], [0, 19]]
    low, high = figure.axes[1].get_ylim()
    assert -0.1 < low < 0
    assert 1 < high < 1.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [report(1)],
        [look(0)],
        [report(1, train_loss=None, gradient_norm=None)],
        [report(1, write_gate=0.0, state_norm=0.0)],
        [report(step, state_norm=1e30 / step, learning_rate=1e-12) for step in range(1, 500)],
    ],
    ids=["nothing", "one report", "one look", "not finite", "zeros", "extremes"],
)
def test_runs_of_any_kind_can_be_read(rows, monkeypatch):
    shown = assert_readable(training_figure(rows, "a_long_$name^" * 9), monkeypatch)
    assert ("no held-out data" in shown) == (not any("val_answers" in row for row in rows))
    assert "not measured" in shown


@pytest.mark.slow
def test_the_curves_of_a_folder(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.add(report(1))
    assert draw_curves(tmp_path) == tmp_path / CURVES_FILE
    picture = (tmp_path / CURVES_FILE).read_bytes()
    assert picture.startswith(b"\x89PNG")
    metrics.add(report(2))
    draw_curves(tmp_path)
    assert (tmp_path / CURVES_FILE).read_bytes() != picture
