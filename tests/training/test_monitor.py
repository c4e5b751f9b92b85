"""The reports of a run: the file of metrics, and the lines on the screen."""

import json
import math
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tuner.trainer import TrainingArgs

from mlx_deltamem.core.adapter import METRICS_FILE
from mlx_deltamem.training.batches import BatchMaker, Feed
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.monitor import Metrics, Monitor
from tests.training.runs import CONFIG, toy_run


def noted(folder, *rows) -> Metrics:
    metrics = Metrics(folder)
    for row in rows:
        metrics.add(row)
    return metrics


def test_each_row_is_a_line_of_json(tmp_path):
    noted(tmp_path, {"iteration": 1, "train_loss": 0.5}, {"iteration": 2, "train_loss": math.nan, "x": -math.inf})
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 1, "train_loss": 0.5},
        {"iteration": 2, "train_loss": None, "x": None},
    ]


def test_nothing_noted(tmp_path):
    assert Metrics(tmp_path).rows() == []
    Metrics(tmp_path).go_back(3)
    assert not (tmp_path / METRICS_FILE).exists()


def test_going_back_removes_rows_that_come_again(tmp_path):
    looks = [{"iteration": step, "val_loss": 1.0} for step in (0, 5, 10, 15)]
    reports = [{"iteration": step, "train_loss": 1.0} for step in (5, 10, 15)]
    metrics = noted(tmp_path, *looks, *reports)
    metrics.go_back(10)
    # The look before step 11 is taken once more, the report of step 10 is not.
    assert metrics.rows() == [*looks[:2], *reports[:2]]
    metrics.go_back(0)
    assert metrics.rows() == []


@pytest.mark.parametrize(
    "line",
    [
        *('{"iteration": 3, "train', "5", "null", '{"loss": 3}', '{"iteration": "3"}', "\udcff", '{"iteration": true}'),
        *(
            '{"iteration": 2.5}',
            '{"iteration": 3, "x": []}',
            '{"iteration": 3, "x": "y"}',
            '{"iteration": 3, "x": true}',
        ),
        *(f'{{"iteration": {10**400}}}', f'{{"iteration": 3, "x": -{10**400}}}', '{"iteration": {"x": 1}}'),
        *(f'{{"iteration": 3, "x": {"[" * depth}{"]" * depth}}}' for depth in (90, 900, 5000, 200_000)),
    ],
    ids=lambda line: line[:30],
)
def test_lines_that_are_not_rows_are_left_out(line, tmp_path):
    metrics = noted(tmp_path, {"iteration": 1, "train_loss": 2.0})
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    metrics.add({"iteration": 2, "train_loss": 1.0})
    assert [row["iteration"] for row in metrics.rows()] == [1, 2]
    metrics.go_back(2)
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 2


@given(st.binary(max_size=60))
def test_any_file_can_be_read(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("metrics")
    (folder / METRICS_FILE).write_bytes(content)
    metrics = Metrics(folder)
    assert all(isinstance(row["iteration"], int) for row in metrics.rows())
    metrics.go_back(1)


def test_the_time_left_is_computed_from_the_pace_since_the_run_was_resumed(monkeypatch, tmp_path, capsys):
    now = [50.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run = toy_run(tmp_path / "run")
    feed = Feed(BatchMaker(CONFIG), 0, 100, -1, lambda _: None)
    args = TrainingArgs(iters=500, steps_per_report=20)
    monitor = Monitor(run.folder, run._module, run._optimizer, feed, Progress(100, 5000.0), args, lambda _: False)
    now[0], feed.tokens = 70.0, 900
    report = {"train_loss": 1.0, "learning_rate": 1e-3, "peak_memory": 0.5, "iterations_per_second": 2.0}
    monitor.on_train_loss_report(report | {"iteration": 10})
    now[0], feed.tokens = 72.0, 1000
    # The last report of a run, of 5 steps, which mlx-lm takes for 20 in 10 seconds.
    monitor.on_train_loss_report(report | {"iteration": 15})
    assert monitor._time_left(110) == timedelta(seconds=1078)  # 22 seconds for 10 steps, 490 are left
    first, second = Metrics(run.folder).rows()
    assert [row["iteration"] for row in (first, second)] == [110, 115]
    assert [row["seconds"] for row in (first, second)] == [5020.0, 5022.0]
    assert [row["seconds_per_step"] for row in (first, second)] == [1.0, 2.0]
    assert [row["tokens_per_second"] for row in (first, second)] == [90.0, 10.0]
    # 20 seconds for 10 steps, 490 are left; 22 for 15, 485 are left.
    printed = " ".join(capsys.readouterr().out.split())
    assert "110 of 600" in printed and "0:16:20 left" in printed and "0:11:51 left" in printed
