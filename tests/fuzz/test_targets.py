"""Each fuzz target reads its seeds and a few mutations of them without a finding."""

import pytest

from tests.fuzz import run
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, seeds_of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_reads_or_refuses(name):
    outcome = run.fuzz(name, inputs=60)
    assert [description for description, _ in outcome.findings.values()] == []
    assert outcome.inputs >= 60


def test_findings_are_counted_and_kept(tmp_path, monkeypatch):
    def target(data: bytes) -> None:
        raise KeyError(data[:1])

    monkeypatch.setitem(TARGETS, "options", target)
    monkeypatch.setattr(run, "SEEDS", tmp_path)
    outcome = run.fuzz("options", inputs=20)
    (description, data), *others = outcome.findings.values()
    assert description.startswith("KeyError in test_targets.py:target")
    assert not others
    (path,) = run.keep("options", outcome)
    assert path.read_bytes() == data


def test_a_reader_that_does_not_end_is_a_finding(monkeypatch):
    def target(data: bytes) -> None:
        while True:
            pass

    monkeypatch.setitem(TARGETS, "options", target)
    monkeypatch.setattr(run, "MOST_SECONDS", 0.05)
    outcome = run.fuzz("options", inputs=2)
    assert list(outcome.findings) == ["more than 0.05 s of the processor, or 60.0 s"]


def test_mutations_are_the_same_for_a_seed_and_reach_behind_the_frame():
    for name in ("npz", "session", "records", "options"):
        data = seeds_of(name)[-1]
        one, other = ([mutated(data, run.Random(seed)) for seed in range(40)] for _ in range(2))
        assert one == other
        assert len(set(one)) > 30
