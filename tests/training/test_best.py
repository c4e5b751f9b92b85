"""The best adapter of a run, by its evaluations on the held-out data."""

import math
from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import load_adapter
from mlx_deltamem.commands.train import print_best
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.best import Best
from mlx_deltamem.training.health import RATIOS
from mlx_deltamem.training.keeper import RunStoppedError
from mlx_deltamem.training.monitor import Metrics, Row
from tests.training.runs import Watched, same, toy_episodes, toy_run

EPISODES, HELD_OUT = toy_episodes(10), toy_episodes(2, seed=1)


def evaluation(loss: float | None, answers: float | None = None, values: float | None = None) -> Row:
    row = {"iteration": 0, "val_loss": loss, "val_answers": answers, "val_values": values}
    return {name: value for name, value in row.items() if value is not None}


def test_more_right_is_better_then_a_smaller_loss(tmp_path):
    best = Best(tmp_path)
    rows = [
        (evaluation(3.0, 0.2), True),
        (evaluation(2.0, 0.1), False),
        (evaluation(2.5, 0.2), True),
        (evaluation(2.5, 0.2), False),
        # If there are values, answers do not count.
        (evaluation(4.0, 0.0, 0.3), True),
        (evaluation(1.0, 0.9, 0.2), False),
        (evaluation(math.nan, 1.0, 1.0), False),
    ]
    assert [best.note(row) for row, _ in rows] == [wanted for _, wanted in rows]


def test_a_resumed_run_continues_from_its_metrics(tmp_path):
    Metrics(tmp_path).add(evaluation(2.0, 0.5))
    Metrics(tmp_path).add({"iteration": 1, "train_loss": 3.0})
    assert Best(tmp_path).note(evaluation(3.0, 0.5))
    (tmp_path / "best").mkdir()
    assert not Best(tmp_path).note(evaluation(3.0, 0.5))
    assert Best(tmp_path).note(evaluation(3.0, 0.6))


def healthy(recall: float, *ratios: float | None) -> Row:
    return evaluation(2.0, recall) | dict(zip(RATIOS, ratios, strict=True))


def test_a_healthy_adapter_is_better_then_the_healthier_one(tmp_path):
    best = Best(tmp_path, 1.1)
    rows = [
        (healthy(0.9, 1.0, 1.0, math.nan), True),
        (healthy(0.8, 1.0, math.inf, 1.0), False),
        (healthy(0.5, 3.0, 1.2, 1.0), True),
        (healthy(0.9, 1.0, 1.0, 3.5), False),
        (healthy(0.1, 1.2, 1.2, 1.2), True),
        (healthy(0.0, 1.1, 1.1, 1.1), True),
        # Among healthy adapters the ratios do not count.
        (healthy(0.3, 1.0, 1.09, 1.0), True),
        (healthy(0.2, 1.0, 1.0, 1.0), False),
        (healthy(0.9, 1.0, 1.101, 1.0), False),
        # An adapter that was not measured is not healthy.
        (evaluation(1.0, 1.0), False),
        (healthy(0.9, None, 1.0, 1.0), False),
    ]
    assert [best.note(row) for row, _ in rows] == [wanted for _, wanted in rows]
    assert [row.get("best") for row, _ in rows] == [1.0 if wanted else None for _, wanted in rows]
    anything = Best(tmp_path)
    assert [anything.note(row) for row in (rows[0][0], rows[4][0], rows[-2][0])] == [True, False, True]


def test_a_resumed_run_scores_the_kept_adapter_with_the_new_limit(tmp_path):
    (tmp_path / "best").mkdir()
    first, metrics = Best(tmp_path, 1.3), Metrics(tmp_path)
    for row in (healthy(0.2, 1.0, 1.0, 1.0), healthy(0.6, 1.0, 1.2, math.nan), healthy(0.5, 1.0, 1.2, 1.0)):
        first.note(row)
        metrics.add(row)
    assert [row.get("best") for row in metrics.rows()] == [1.0, None, 1.0]
    for limit, recall, ratio, wanted in (
        (1.3, 0.4, 1.0, False),
        (1.3, 0.6, 1.0, True),
        # With this limit the kept adapter is not healthy, and the healthy first one was overwritten.
        (1.1, 0.1, 1.1, True),
        (1.1, 0.9, 1.25, False),
        (None, 0.55, 9.0, True),
    ):
        assert Best(tmp_path, limit).note(healthy(recall, ratio, 1.0, 1.0)) == wanted


def test_metrics_without_marks_are_scored(tmp_path):
    (tmp_path / "best").mkdir()
    Metrics(tmp_path).add(evaluation(2.0, 0.9))
    Metrics(tmp_path).add(evaluation(2.0, 0.4))
    assert not Best(tmp_path).note(evaluation(1.0, 0.5))
    assert Best(tmp_path, 1.1).note(healthy(0.1, 1.0, 1.0, 1.0))


def test_the_best_adapter_is_kept_beside_the_last(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run", steps_per_eval=2, learning_rate=0.1, warmup=0)
    scores = {0: 0.1, 1: 0.2, 3: 0.6, 5: 0.6, 7: 0.3, 9: 0.5, 11: 0.4}
    monkeypatch.setattr(Accuracy, "take", lambda _: {"questions": 2, "answers": scores[seen.pop(0)]})
    seen, kept = sorted(scores), {}
    note = run._evaluated

    def evaluated(row: Row) -> bool:
        kept[row["iteration"]] = dict(current_adapter(run.model).weights)
        row["val_loss"] = 1.0
        return note(row)

    run._evaluated = evaluated
    run.train(EPISODES, HELD_OUT)
    best = load_adapter(tmp_path / "run" / "best")
    assert same(dict(best.weights), kept[3]) and not same(dict(best.weights), kept[5])
    assert best.metadata["trained"].endswith("3 of 12 steps of 2, seed 0")
    assert load_adapter(tmp_path / "run").metadata["trained"].endswith("12 steps of 2, seed 0")
    # The option `keep` can also be given when the run is finished.
    again = toy_run(tmp_path / "run", steps_per_eval=2, learning_rate=0.1, warmup=0, keep="best")
    assert again.resume() == 12
    again.train(EPISODES, HELD_OUT)
    ended = load_adapter(tmp_path / "run")
    assert same(dict(ended.weights), dict(best.weights)) and ended.metadata == best.metadata


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(11, 7), (3, 5), (2, 2, 9)])
def test_a_resumed_run_ends_with_the_same_best_adapter(tmp_path, stops):
    def ended(name: str, *stops: int) -> dict[str, mx.array]:
        for stop in (*stops, None):
            run = toy_run(tmp_path / name, steps_per_eval=4, steps_per_report=5, save_every=1, keep="best")
            run.resume()
            train = EPISODES if stop is None else Watched(EPISODES, stop, interrupt)
            with suppress(InterruptedError):
                run.train(train, HELD_OUT)
        return dict(load_adapter(tmp_path / name).weights)

    def interrupt() -> None:
        raise InterruptedError

    assert same(ended("one"), ended("two", *stops))
    looks, reports = (
        [[row["iteration"] for row in Metrics(tmp_path / name).rows() if kind in row] for name in ("one", "two")]
        for kind in ("val_loss", "train_loss")
    )
    assert looks == [[0, 3, 7, 11]] * 2
    # The last step of a process is always reported.
    assert set(reports[0]) <= set(reports[1]) and reports[0] == [5, 10, 12]


def test_early_stopping_counts_the_evaluations_before_a_stop(tmp_path):
    assert Best(tmp_path).worse == 0
    for number, right in enumerate((0.2, 0.5, 0.4, 0.3)):
        best, row = Best(tmp_path), evaluation(1.0, right)
        (tmp_path / "best").mkdir(exist_ok=True)
        best.note(row)
        Metrics(tmp_path).add({**row, "iteration": number})
        assert Best(tmp_path).worse == best.worse
    assert best.worse == 2


def test_the_best_adapter_needs_held_out_data_and_a_folder(tmp_path):
    run = toy_run(tmp_path / "run", keep="best")
    with pytest.raises(ValueError, match="--keep best needs held-out data; expected a"):
        run.check(EPISODES, [])
    (tmp_path / "run" / "best").touch()
    with pytest.raises(RunStoppedError, match=r"the best adapter, after step 0, cannot be saved \(.*; there is no"):
        run.train(EPISODES, HELD_OUT)
    (tmp_path / "run" / "best").unlink()
    done = toy_run(tmp_path / "run", keep="best")
    done._first = replace(done._first, iteration=12)
    with pytest.raises(RunStoppedError, match="the best adapter cannot be saved"):
        done.train(EPISODES, HELD_OUT)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("best", "The adapter is that of step 3, the best by health and held-out answers. For that of the last step: "),
        (
            "last",
            "The adapter is that of the last step; that of step 3, the best by health and held-out answers, is in ",
        ),
    ],
)
def test_the_end_of_a_run_says_which_adapter_is_in_its_folder(tmp_path, capsys, keep, said):
    run = toy_run(tmp_path, iters=5, keep=keep)
    print_best(run)
    (tmp_path / "best").mkdir()
    Metrics(tmp_path).add({"iteration": 3, "val_loss": 2.0, "best": 1.0})
    Metrics(tmp_path).add({"iteration": 4, "val_loss": 3.0})
    print_best(run)
    Metrics(tmp_path).add({"iteration": 4, "val_loss": 1.0, "best": 1.0})
    print_best(run)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(said)
    assert lines[0].endswith(f"--adapter-path {tmp_path} --keep last" if keep == "best" else str(tmp_path / "best"))
