import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.core.adapter import METRICS_FILE
from mlx_deltamem.training.monitor import Metrics


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


def test_going_back_forgets_what_comes_again(tmp_path):
    looks = [{"iteration": step, "val_loss": 1.0} for step in (0, 5, 10, 15)]
    reports = [{"iteration": step, "train_loss": 1.0} for step in (5, 10, 15)]
    metrics = noted(tmp_path, *looks, *reports)
    metrics.go_back(10)
    # The look before step 11 is taken once more, the report of step 10 is not.
    assert metrics.rows() == [*looks[:2], *reports[:2]]
    metrics.go_back(0)
    assert metrics.rows() == []


@pytest.mark.parametrize(
    "line", ['{"iteration": 3, "train', "5", "null", '{"loss": 3}', '{"iteration": "3"}', "\udcff"]
)
def test_lines_that_are_none_of_its_own_are_left_out(line, tmp_path):
    metrics = noted(tmp_path, {"iteration": 1, "train_loss": 2.0})
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    metrics.add({"iteration": 2, "train_loss": 1.0})
    assert [row["iteration"] for row in metrics.rows()] == [1, 2]
    metrics.go_back(2)
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 2


@given(st.binary(max_size=60))
def test_whatever_is_in_the_file(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("metrics")
    (folder / METRICS_FILE).write_bytes(content)
    metrics = Metrics(folder)
    assert all(isinstance(row["iteration"], int) for row in metrics.rows())
    metrics.go_back(1)
