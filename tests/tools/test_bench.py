import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.benchmarking.measure import PhaseComparison
from mlx_deltamem.benchmarking.models import FRESH_ADAPTER, with_and_without
from mlx_deltamem.benchmarking.paired import Sample
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.workloads import Workload
from tools.measure import bench
from tools.measure.bench import Figure

numbers = st.floats(0.1, 100)


@pytest.mark.parametrize(
    ("measured", "noise", "verdict"),
    [(1.02, 0.0, "pass"), (1.03, 0.0, "pass"), (1.04, 0.0, "MISS"), (1.04, 0.02, "within noise"), (1.06, 0.02, "MISS")],
)
def test_verdicts(measured, noise, verdict):
    assert Figure("time", 1.03, measured, noise).verdict == verdict
    # The same where more is better.
    assert Figure("speed", -1.03, -measured, noise, at_least=True).verdict == verdict


def test_a_yardstick_is_no_promise():
    assert Figure("slow", None, 2.0).verdict == "yardstick"
    assert bench.figures_table([Figure("slow", None, 2.0)]).row_count == 1


@given(numbers, numbers, numbers, st.booleans())
def test_noise_never_turns_a_pass_into_a_miss(target, measured, noise, at_least):
    exact, noisy = (Figure("", target, measured, each, at_least).verdict for each in (0.0, noise))
    assert (exact == "pass") == (noisy == "pass")
    assert exact == "MISS" if noisy == "MISS" else True


@pytest.mark.parametrize(
    ("figures", "code"),
    [
        ([Figure("one", 1.0, 0.9), Figure("two", 1.0, 1.1, 0.2)], 0),
        ([Figure("one", 1.0, 0.9), Figure("two", 1.0, 1.3, 0.2)], 1),
    ],
)
def test_a_miss_fails(figures, code, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cpu_figures", lambda: iter(figures))
    monkeypatch.setattr(bench, "gpu_figures", lambda: iter(figures))
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == code
    shown = capsys.readouterr().out
    assert all(figure.name in shown and figure.verdict in shown for figure in figures)


def test_figures_are_of_the_memory_and_not_of_the_backbone():
    taken = {"frozen": 1.0, "frozen_again": 1.01, "delta_mem": 1.2, "read_only": 3.0}
    samples = {name: [Sample(factor, factor, int(factor * 1000))] for name, factor in taken.items()}
    comparison = PhaseComparison("prefill", 8, 8, samples)
    for figure in (bench.time_ratio("x", 1.03, comparison), bench.peak_ratio("x", comparison)):
        assert figure.measured == pytest.approx(1.2)
        assert figure.noise == pytest.approx(0.01)
        assert figure.verdict == "MISS"


@pytest.mark.slow
@pytest.mark.parametrize(("batch_time", "verdict"), [(1.05, "pass"), (1.06, "within noise"), (1.08, "MISS")])
def test_a_batch_is_to_be_like_a_single_sequence(batch_time, verdict, monkeypatch):
    def decode(_: object, work: Workload) -> PhaseComparison:
        taken = {"frozen": 1.0, "frozen_again": 1.01, "delta_mem": 1.05 if len(work.prompts) == 1 else batch_time}
        return PhaseComparison("decode", 8, 8, {name: [Sample(factor, factor)] for name, factor in taken.items()})

    models = with_and_without(random_model("tiny", mx.float32), FRESH_ADAPTER)
    monkeypatch.setattr(bench, "decode", decode)
    assert bench.batch_ratio("x", models).verdict == verdict
