import json
import re

import pytest

from tests.conftest import REPO
from tests.tool_runs import runner
from tools.measure import mac_memory
from tools.measure.mac_memory import BACKBONES, GPU_SHARES, HISTORIES, rows

SMOLLM3, QWEN3_4B, QWEN3_8B = BACKBONES


def test_the_shapes_are_those_of_the_paper():
    # Facts 1.7, of an adapter with one state head and with four; and billions of parameters, as in the models' names.
    assert [QWEN3_4B.adapter_parameters(width) for width in (8, 32)] == [4_866_336, 19_465_344]
    assert [round(each.adapter_parameters(8) / 1e6, 2) for each in (QWEN3_8B, SMOLLM3)] == [7.08, 3.54]
    assert [round(each.weight_bytes(16) / 2e9, 2) for each in BACKBONES] == [3.07, 4.02, 8.19]


def test_more_of_anything_takes_more():
    for backbone in BACKBONES:
        assert backbone.weight_bytes(4) < backbone.weight_bytes(8) < backbone.weight_bytes(16)
        taken = [backbone.step_bytes(4, tokens, 1024) for tokens in HISTORIES]
        assert taken == sorted(taken) and backbone.step_bytes(4, 8192, 512) < backbone.step_bytes(4, 8192, 1024)
        # What fits does so by a step, and the next one does not.
        for memory, share in GPU_SHARES.items():
            longest, room = backbone.longest_history(4, memory, 1024), memory * share * 2**30
            fitting = [tokens for tokens, needed in zip(HISTORIES, taken, strict=True) if needed <= room]
            assert longest == (fitting[-1] if fitting else None)


def test_the_table_of_the_guide():
    guide = (REPO / "mlx_deltamem" / "TRAIN.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\S+B) \| (\d+) \| ([\d.]+) GB \| (.+) \|$", guide, re.M)
    expected = [
        (
            row["backbone"],
            str(row["bits"]),
            str(row["weights_gb"]),
            " | ".join("–" if tokens is None else f"{tokens:,}" for tokens in row["histories"].values()),
        )
        for row in rows(1024)
    ]
    assert told == expected


def test_the_tool_prints_a_table_and_json(monkeypatch, capsys):
    run = runner(mac_memory, monkeypatch, capsys)
    ended = run()
    assert ended.code == 0 and "Qwen3-8B" in ended.output and "67% of 16 GB" in ended.output
    found = json.loads(run("--json", "--segment", 512).output)
    assert found["segment"] == 512 and len(found["rows"]) == 9


@pytest.mark.parametrize("segment", [0, -1])
def test_numbers_that_cannot_be_are_refused(segment, monkeypatch, capsys):
    ended = runner(mac_memory, monkeypatch, capsys)("--segment", segment)
    assert ended.code == 2 and "expected a whole number from 1 to" in ended.errors
