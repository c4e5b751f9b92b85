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
from tools.measure.figures import Figure, Run, changes, collect, figures_table, left_open

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
    assert figures_table(Run("here", [Figure("slow", None, 2.0)]), "title").row_count == 1


@given(numbers, numbers, numbers, st.booleans())
def test_noise_never_turns_a_pass_into_a_miss(target, measured, noise, at_least):
    exact, noisy = (Figure("", target, measured, each, at_least).verdict for each in (0.0, noise))
    assert (exact == "pass") == (noisy == "pass")
    assert exact == "MISS" if noisy == "MISS" else True


def bench_code(figures: list[Figure], monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    """The exit code of the bench with these figures."""
    for name in ("cpu_figures", "gpu_figures"):
        monkeypatch.setattr(bench, name, lambda seconds: iter(figures))
    monkeypatch.setattr("sys.argv", ["bench", *map(str, options)])
    try:
        bench.main()
    except SystemExit as ended:
        return int(ended.code)
    return 0


@pytest.mark.parametrize(
    ("figures", "code"),
    [
        ([Figure("one", 1.0, 0.9), Figure("two", 1.0, 1.1, 0.2)], 0),
        ([Figure("one", 1.0, 0.9), Figure("two", 1.0, 1.3, 0.2)], 1),
    ],
)
def test_a_miss_fails(figures, code, monkeypatch, capsys):
    assert bench_code(figures, monkeypatch) == code
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
    def decode(_: object, work: Workload, *__: object) -> PhaseComparison:
        taken = {"frozen": 1.0, "frozen_again": 1.01, "delta_mem": 1.05 if len(work.prompts) == 1 else batch_time}
        return PhaseComparison("decode", 8, 8, {name: [Sample(factor, factor)] for name, factor in taken.items()})

    models = with_and_without(random_model("tiny", mx.float32), FRESH_ADAPTER)
    monkeypatch.setattr(bench, "decode", decode)
    assert bench.batch_ratio("x", models, 1.0).verdict == verdict


@pytest.mark.parametrize(
    ("measured", "noise", "is_open"),
    [(1.02, 0.005, False), (1.02, 0.02, True), (1.04, 0.02, True), (1.05, 0.01, False), (1.03, 0.0, False)],
)
def test_the_bench_says_what_it_could_not_tell(measured, noise, is_open):
    figure = Figure("decode", 1.03, measured, noise, rounds=40)
    told = left_open(Run("here", [figure, Figure("slow", None, 2.0, 1.0)]))
    assert told == (
        [f"Could not tell whether decode is ≤ 1.03: {measured} ± {noise:.3f} after 40 rounds"] if is_open else []
    )


def test_a_change_is_more_than_the_noise_of_both_runs():
    earlier = Run("here", [Figure(name, 1.1, 1.00, 0.01) for name in "abc"] + [Figure("scan", 25, 50.0, 1.0, True)])
    run = Run(
        "here",
        [
            Figure("a", 1.1, 1.02, 0.005),
            Figure("b", 1.1, 1.02, 0.02),
            Figure("c", 1.1, 0.90, 0.01),
            Figure("scan", 25, 40.0, 1.0, True),
            Figure("d", 1.1, 1.0),
        ],
    )
    assert changes(run, earlier) == {"a": "WORSE", "b": "as before", "c": "better", "scan": "WORSE", "d": "new"}
    assert left_open(earlier, run)[-1] == "The earlier run has d, and this one has not"


def test_a_figure_that_got_worse_fails_on_the_same_machine_only(tmp_path, monkeypatch, capsys):
    file = tmp_path / "runs" / "earlier.json"
    assert bench_code([Figure("one", 1.1, 1.00, 0.01)], monkeypatch, "--json", file) == 0
    worse = [Figure("one", 1.1, 1.05, 0.01)]
    assert bench_code(worse, monkeypatch, "--compare", file) == 1
    assert "WORSE" in capsys.readouterr().out
    Run("another one", Run.load(file).figures).save(file)
    assert bench_code(worse, monkeypatch, "--compare", file) == 0
    assert "on another machine: another one" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_is_no_run_is_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / "other.json"
    for text in ("[]", '{"machine": "here"}', '{"machine": "here", "figures": [{"named": 1}], "is_complete": true}'):
        file.write_text(text)
        assert bench_code([], monkeypatch, "--compare", file) == 2
        assert "not the JSON of a benchmark run" in " ".join(capsys.readouterr().err.split())
    assert bench_code([], monkeypatch, "--compare", tmp_path / "missing.json") == 2


@pytest.mark.parametrize(("seconds", "measured", "is_complete"), [(25.0, 3, False), (100.0, 5, True), (0.5, 1, False)])
def test_no_figure_is_begun_after_the_time(seconds, measured, is_complete):
    now, kept = [0.0], []

    def figures():
        for number in range(5):
            # Each takes ten seconds.
            now[0] += 10
            yield Figure(str(number), None, 1.0)

    assert collect(figures(), seconds, kept.append, lambda: now[0]) == is_complete
    assert len(kept) == measured


def test_a_run_that_is_cut_off_leaves_its_figures(tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.json"

    def cut_off(_: float):
        yield Figure("one", 1.1, 1.05, 0.01)
        yield Figure("two", 1.1, 1.0)
        raise RuntimeError("the machine is gone")

    for name in ("cpu_figures", "gpu_figures"):
        monkeypatch.setattr(bench, name, cut_off)
    monkeypatch.setattr("sys.argv", ["bench", "--json", str(file)])
    with pytest.raises(RuntimeError):
        bench.main()
    run = Run.load(file)
    assert [figure.name for figure in run.figures] == ["one", "two"]
    assert not run.is_complete
    assert "one: 1.05 ± 0.010 (≤ 1.1) pass" in capsys.readouterr().out
    assert "figures that come after these were not measured" in left_open(run)[0]
