import pytest

from tests.conftest import REPO
from tests.tool_runs import runner
from tools.measure import start_up


@pytest.mark.slow
def test_a_table_of_whole_processes(monkeypatch, capsys):
    busy = "for _ in range({}): pass"
    programs = {"more work": (busy.format(1_000_000), busy.format(5_000_000), 1.02)}
    monkeypatch.setattr(start_up, "IMPORTS", programs)
    ended = runner(start_up, monkeypatch, capsys)("--rounds", 3)
    assert ended.code == 0
    row = next(line for line in ended.output.splitlines() if "more work" in line)
    _, theirs, ours, *_ = row.strip("│ ").split("│")
    assert float(ours) > float(theirs) > 0 and "≤ 1.02" in row


def test_the_commands_that_are_compared_differ_in_the_adapter_only():
    theirs, ours, _ = start_up.first_token("M", "A")
    assert ours.replace("mlx_deltamem", "mlx_lm").replace(", '--adapter-path', 'A'", "") == theirs


def test_a_program_that_fails_is_an_error():
    with pytest.raises(ValueError, match="ended with the status"):
        start_up.run("raise SystemExit(3)")


def test_a_model_needs_its_adapter(monkeypatch, capsys):
    ended = runner(start_up, monkeypatch, capsys)("--model", REPO)
    assert ended.code == 2 and "expected both or none" in ended.errors
