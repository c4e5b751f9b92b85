"""What a run tells on its way; how it fits the steps of a run is in test_training_run.py."""

import time
from datetime import timedelta

from mlx_deltamem.training.batches import BatchMaker, Feed
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.monitor import Metrics, Monitor
from tests.training.runs import CONFIG, toy_run


def test_the_time_left_is_that_of_the_rest_at_the_pace_since_the_run_was_resumed(monkeypatch, tmp_path, capsys):
    now = [50.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run = toy_run(tmp_path / "run")
    feed = Feed(BatchMaker(CONFIG), 0, 100, -1, lambda _: None)
    monitor = Monitor(run.folder, run._module, run._optimizer, feed, Progress(100, 5000.0), 600, 20, lambda _: False)
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
