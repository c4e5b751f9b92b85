import re

import pytest

from tests.conftest import REPO
from tests.tool_runs import runner
from tools.measure import training_memory
from tools.measure.training_memory import Widths, computed_peak


@pytest.mark.parametrize(
    ("tokens", "segment", "gigabytes"),
    [(2048, 1024, 1.3), (4096, 1024, 2.4), (8192, 1024, 4.7), (2048, None, 18), (4096, None, 56), (8192, None, 192)],
)
def test_the_figures_of_the_guide(tokens, segment, gigabytes):
    computed = computed_peak(Widths.of("qwen3-4b"), tokens, segment, itemsize=2) / 1e9
    assert round(computed, 1 if segment else None) == gigabytes
    guide = " ".join((REPO / "mlx_deltamem" / "TRAIN.md").read_text(encoding="utf-8").split())
    told = re.search(r"takes (.*?) GB on top of the weights, instead of (.*?) GB", guide)
    assert f"{gigabytes:g}" in re.findall(r"[\d.]+", told[1 if segment else 2])


def test_a_segment_longer_than_the_history_is_the_history():
    widths = Widths.of("small")
    assert computed_peak(widths, 64, 100, 4) == computed_peak(widths, 64, 64, 4) > computed_peak(widths, 64, 32, 4)


@pytest.mark.parametrize("option", ["--tokens", "--segments", "--rounds"])
def test_numbers_that_cannot_be_are_refused(option, monkeypatch, capsys):
    ended = runner(training_memory, monkeypatch, capsys)(option, 0)
    assert ended.code == 2 and "is 0; expected a whole number from 1 to" in ended.errors
