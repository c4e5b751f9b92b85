"""Reports to wandb and SwanLab. A module that records its calls stands for the services, which are on the network."""

import sys
from types import ModuleType

import pytest

from mlx_deltamem.training.services import check_services
from mlx_deltamem.training.settings import Reporting
from tests.training.runs import toy_episodes, toy_run


class Service(ModuleType):
    """A stand-in for wandb and SwanLab, with the functions that mlx-lm calls."""

    def __init__(self, name: str):
        super().__init__(name)
        self.begun: list[dict] = []
        self.rows: list[tuple[dict, int]] = []

    def init(self, **options: object) -> None:
        self.begun.append(options)

    def log(self, row: dict, step: int) -> None:
        self.rows.append((row, step))


def test_a_run_reports_to_both_services(tmp_path, monkeypatch):
    services = {name: Service(name) for name in ("wandb", "swanlab")}
    for name, service in services.items():
        monkeypatch.setattr(f"mlx_lm.tuner.callbacks.{name}", service)
    run = toy_run(tmp_path / "run", iters=4, report_to="wandb,swanlab", project_name="memories")
    run.train(toy_episodes(4), toy_episodes(2, seed=1))
    for service in services.values():
        (begun,) = service.begun
        assert begun["project"] == "memories"
        assert begun["config"]["iters"] == 4
        # The rows of metrics.jsonl: an evaluation before the first step and one before the last, and two reports.
        assert [(step, "val_loss" in row, "train_loss" in row) for row, step in service.rows] == [
            (0, True, False),
            (3, False, True),
            (3, True, False),
            (4, False, True),
        ]
        assert all(row["iteration"] == step for row, step in service.rows)


def test_without_the_option_nothing_is_sent(tmp_path, monkeypatch):
    service = Service("wandb")
    monkeypatch.setattr("mlx_lm.tuner.callbacks.wandb", service)
    toy_run(tmp_path / "run", iters=2, steps_per_report=1).train(toy_episodes(4), [])
    assert not service.begun and not service.rows


def test_a_service_that_is_not_installed_is_refused_at_the_beginning(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--report-to wandb needs wandb, which is not installed: pip install wandb"):
        check_services(Reporting(report_to="wandb"))
    with pytest.raises(ValueError, match="--project-name goes with --report-to"):
        check_services(Reporting(project_name="memories"))
    check_services(Reporting())
