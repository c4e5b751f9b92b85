"""The model's health during training: the metrics, the printed lines, and the choice of the best adapter."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem import load_adapter
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.evaluation.decoding import GeneratedReply
from mlx_deltamem.evaluation.tasks.health import WAYS, Answered, Checkup, Losses
from mlx_deltamem.training import health, processes
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.best import best_step
from mlx_deltamem.training.health import RATIOS, is_healthy, largest_ratio
from mlx_deltamem.training.monitor import Metrics
from mlx_deltamem.training.prepare import load_episodes, prepare_model
from mlx_deltamem.training.run import Run
from mlx_deltamem.training.settings import Reporting, Schedule, Settings
from tests.conftest import backbone, randomise
from tests.training.runs import Watched, same, toy_episodes, toy_run, write_chats

EPISODES, HELD_OUT = toy_episodes(10), toy_episodes(2, seed=1)
PROMPTS = ("Why [so]?", "And?")


def stand_in(ratio: Callable[[], float]) -> SimpleNamespace:
    """A checkup with one ratio for all conditions."""

    def losses() -> Losses:
        return Losses(np.array([2]), np.array([4.0]), dict.fromkeys(WAYS, np.array([4.0 + 2 * math.log(ratio())])))

    frozen, other = GeneratedReply("So.", 2, "end", (1, 2)), GeneratedReply("\n a\n[b]", 2, "length", (1, 3))
    return SimpleNamespace(
        losses=losses, replies=lambda: [Answered(PROMPTS[0], frozen, frozen), Answered(PROMPTS[1], frozen, other)]
    )


def printed(capsys) -> str:
    """The printed text without the line breaks of a terminal of 80 columns."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split())


def test_the_ratios_and_the_printed_lines(capsys):
    row = health.measure_health(stand_in(lambda: 1.2), 1.1)
    assert row == {name: pytest.approx(1.2) for name in ("health_written", *RATIOS)}
    text = printed(capsys)
    assert "÷ frozen: 1.200 written, 1.200 carried and read, 1.200 carried and written · not healthy, above 1.1" in text
    assert "Why [so]? → So. (as the frozen model) And? → a [b]" in text
    health.measure_health(stand_in(lambda: 1.1), 1.2)
    assert "not healthy" not in printed(capsys)


def test_the_largest_ratio_decides():
    row = dict(zip(RATIOS, (1.0, 1.2, 1.1), strict=True))
    assert largest_ratio(row) == 1.2 and is_healthy(row, 1.2) and not is_healthy(row, 1.19)
    for missing in ({}, row | {"health_written": None}, row | {"health_written": math.nan}):
        assert largest_ratio(missing) == math.inf


def test_an_unhealthy_adapter_with_more_right_is_not_the_best(tmp_path, monkeypatch, capsys):
    answers, ratios = [0.0, 0.5, 0.9, 0.4], [1.0, 1.05, 3.0, 1.0]
    evaluations = []
    monkeypatch.setattr(Accuracy, "take", lambda _: {"questions": 2, "answers": answers[len(evaluations) - 1]})
    kept = []

    def ratio() -> float:
        return ratios[len(evaluations) - 1]

    run = toy_run(tmp_path / "run", steps_per_eval=4, learning_rate=0.1, warmup=0, keep="best")
    run.checkup = stand_in(ratio)
    note = run._evaluated

    def evaluated(row: dict[str, float | None]) -> bool:
        kept.append(dict(current_adapter(run.model).weights))
        return note(row)

    take = Accuracy.take
    monkeypatch.setattr(Accuracy, "take", lambda self: (evaluations.append(0), take(self))[1])
    run._evaluated = evaluated
    run.train(EPISODES, HELD_OUT)
    assert len(kept) == 4
    assert same(dict(load_adapter(tmp_path / "run").weights), kept[1])
    rows = [row for row in Metrics(tmp_path / "run").rows() if "val_loss" in row]
    assert [row["health_carried_read"] for row in rows] == [pytest.approx(each) for each in ratios]
    assert [row.get("best") for row in rows] == [1.0, 1.0, None, None]
    assert best_step(tmp_path / "run") == rows[1]["iteration"] == 3
    assert printed(capsys).count("not healthy") == 1


@pytest.mark.slow
def test_a_resumed_run_keeps_its_healthy_best_adapter(tmp_path):
    def weights(run: Run) -> dict[str, mx.array]:
        return dict(current_adapter(run.model).weights)

    def interrupt() -> None:
        raise InterruptedError

    def ended(name: str, *stops: int) -> dict[str, mx.array]:
        start = None
        for stop in (*stops, None):
            run = toy_run(tmp_path / name, steps_per_eval=2, save_every=1, keep="best")
            start = start or weights(run)
            # Only the adapter that it began with is healthy; later ones foretell the held-out data better.
            run.checkup = stand_in(lambda run=run, start=start: 1.0 if same(weights(run), start) else 1.2)
            run.resume()
            with suppress(InterruptedError):
                run.train(EPISODES if stop is None else Watched(EPISODES, stop, interrupt), HELD_OUT)
        best = dict(load_adapter(tmp_path / name).weights)
        assert same(best, start)
        return best

    assert same(ended("one"), ended("two", 11, 7))
    losses = [row["val_loss"] for row in Metrics(tmp_path / "two").rows() if "val_loss" in row]
    assert losses[0] > losses[-1]


def test_only_the_first_process_measures(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run", steps_per_eval=12)
    run.checkup = stand_in(lambda: 1.0)
    run._best = SimpleNamespace(note=lambda row: False)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    row = {"iteration": 0, "val_loss": 1.0}
    run._evaluated(row)
    assert row == {"iteration": 0, "val_loss": 1.0}


def real_run(folder: Path, data: Path, texts: int) -> Run:
    """A run on the golden backbone with an unhealthy first adapter."""
    settings = Settings(backbone(), str(data), schedule=Schedule(2, 4, 1e-2, warmup=0))
    model, tokenizer = prepare_model(settings)
    mx.random.seed(1)
    randomise(model)
    folder.mkdir()
    checkup = Checkup(model, tokenizer, texts, 1) if texts else None
    run = Run(model, settings, Reporting(steps_per_eval=2), folder, checkup)
    episodes = load_episodes(settings, tokenizer, "stop")
    run.train(episodes["train"][0], episodes["valid"][0])
    return run


@pytest.mark.slow
def test_a_health_check_does_not_change_the_training(tmp_path):
    data = write_chats(tmp_path / "names")
    runs = {texts: real_run(tmp_path / f"run {texts}", data, texts) for texts in (0, 1)}
    adapters = {texts: dict(current_adapter(run.model).weights) for texts, run in runs.items()}
    assert same(adapters[0], adapters[1])
    evaluations = {texts: [r for r in Metrics(run.folder).rows() if "val_loss" in r] for texts, run in runs.items()}
    assert [row["val_loss"] for row in evaluations[0]] == [row["val_loss"] for row in evaluations[1]]
    assert not any(set(RATIOS) & set(row) for row in evaluations[0])
    ratios = [row["health_written"] for row in evaluations[1]]
    assert len(set(ratios)) == len(ratios) == 3
    # The last evaluation was before the last step. The finished adapter has another ratio.
    assert runs[1].checkup.losses().ratios["written"] not in ratios
