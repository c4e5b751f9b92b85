import json
import math
import re

import mlx.core as mx
import pytest

from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.benchmark import main
from mlx_deltamem.benchmarking.figure import benchmark_figure
from mlx_deltamem.benchmarking.measure import PhaseComparison
from mlx_deltamem.benchmarking.models import FROZEN, VARIANTS
from mlx_deltamem.benchmarking.paired import Sample
from mlx_deltamem.benchmarking.report import BenchmarkReport, Subject
from mlx_deltamem.benchmarking.table import benchmark_tables
from mlx_deltamem.show.tables import print_tables
from tests.command_line import run_command
from tests.conftest import adapter, backbone
from tests.figures import assert_readable

TINY = ("--shape", "tiny", "--prompt-tokens", "4", "7", "--generation-tokens", "2", "--num-trials", "3")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: its exit code, what it printed, and its errors."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mlx_deltamem.benchmark", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return command


def is_ordered(quartiles: dict[str, float]) -> bool:
    return 0 < quartiles["low"] <= quartiles["median"] <= quartiles["high"] < math.inf


@pytest.mark.slow
def test_the_document_of_a_random_model():
    result = run_command("benchmark", *TINY, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert {name: found[name] for name in ("clock", "batch_size", "generation_tokens", "num_trials")} == {
        "clock": "cpu_seconds" if mx.default_device().type == mx.cpu else "wall_seconds",
        "batch_size": 1,
        "generation_tokens": 2,
        "num_trials": 3,
    }
    subject = found["subject"]
    assert (subject["layers"], subject["rank"], subject["delta_heads"]) == (2, 8, ["q", "o"])
    assert subject["state_bytes"] == 2 * 8 * 8 * 4
    assert subject["primitives"]["AddMM"] == 2
    assert [(each["phase"], each["prompt_tokens"], each["tokens"]) for each in found["comparisons"]] == [
        ("prefill", 4, 4),
        ("decode", 4, 2),
        ("prefill", 7, 7),
        ("decode", 7, 2),
    ]
    for comparison in found["comparisons"]:
        quantities = {"wall_seconds", "cpu_seconds"} | ({"peak_bytes"} if comparison["phase"] == "prefill" else set())
        assert list(comparison["variants"]) == list(VARIANTS)
        for name, figures in comparison["variants"].items():
            ratios = set() if name == FROZEN else {f"{quantity}_ratio" for quantity in quantities}
            assert figures.keys() == {"tokens_per_second"} | quantities | ratios
            assert is_ordered(figures["tokens_per_second"])
            assert all(len(figures[quantity]) == 3 for quantity in quantities)
            assert all(is_ordered(figures[ratio]) and figures[ratio]["noise"] >= 0 for ratio in ratios)


@pytest.mark.slow
def test_a_real_model_and_adapter_in_batches(run, tmp_path):
    plot = tmp_path / "speed.png"
    options = ["-p", 5, "-g", 2, "-n", 3, "-b", 2, "--prefill-step-size", 3, "--plot", plot]
    code, shown, errors = run("--model", backbone(), "--adapter", adapter(), *options)
    assert (code, errors) == (0, "")
    # Lines are broken where they are too long.
    assert f"model{backbone()},0.0" in "".join(shown.split())
    assert "2 sequences" in shown
    assert f"{load_adapter(adapter()).parameters:,}" in shown
    # A line of the noise may begin with the name of a variant too, where it was broken.
    rows = [line for line in shown.splitlines() if re.match(r" *read-only +[\d.,]+ ", line)]
    assert len(rows) == 2
    assert "Noise" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["speed.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny", "-p", "0"], "--prompt-tokens/-p is 0; expected a whole number from 1 to 2**31 - 1"),
        (["--shape", "tiny", "-n", "2"], "--num-trials/-n is 2; expected a whole number from 3 to 2**31 - 1"),
        (["--shape", "tiny", "-b", "1000000000", "-p", "4"], "expected at most 16,777,216 tokens in a batch"),
        (["--shape", "tiny", "-p", "4", "1000000000"], "--batch-size is 1 with sequences of 1,000,000,000 tokens"),
        (["--shape", "tiny", "-g", "1000000000"], "--batch-size is 1 with sequences of 1,000,000,000 tokens"),
        (["--shape", "huge"], "invalid choice: 'huge'"),
        (["--shape", "tiny", "--q-bits", "7"], "--q-bits is 7; expected 2 or 3 or"),
        (["--shape", "tiny", "--model", "x"], "not allowed with argument"),
        (["--model", backbone(), "--dtype", "float16"], "--dtype is for --shape"),
        (["--q-bits", "4"], "--q-bits is for --shape"),
        (["--shape", "tiny", "--pipeline"], "--pipeline is for --model"),
        (["--shape", "tiny", "--adapter", adapter()], "does not fit"),
        (["--model", "no/such/model"], "no/such/model is not a folder"),
        (["--shape", "tiny", "--plot", "figure.txt"], "does not end in .png"),
        (["--shape", "tiny", "--dark"], "--dark is for the figure of --plot; add --plot"),
        (["--shape", "tiny", "--plot", "no/such/folder/figure.png"], "there is no folder no/such/folder"),
    ],
)
def test_bad_inputs_are_refused(run, arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("mlx_deltamem.commands.benchmark._measure", lambda *_: pytest.fail("it measured all the same"))
    code, shown, errors = run(*arguments)
    assert code == 2
    assert message in errors
    assert shown == ""


def test_a_missing_adapter_is_missed_before_a_model_is_made(run, monkeypatch):
    monkeypatch.setattr(
        "mlx_deltamem.commands.benchmark.random_model", lambda *_: pytest.fail("it made a model all the same")
    )
    code, _, errors = run("--shape", "tiny", "--adapter", "no/such/folder")
    assert code == 2
    assert "there is no folder no/such/folder" in errors


def made_report(lengths: list[int], batch: int = 1) -> BenchmarkReport:
    """A report: 10 tokens a second; δ-mem takes 5 % more time, read-only δ-mem 0.1 %; the noise is 0.9 %."""
    factors = {"frozen": [1, 1, 1], "frozen_again": [0.99, 1, 1.01], "delta_mem": [1.05] * 3, "read_only": [1.001] * 3}

    def comparison(phase: str, length: int) -> PhaseComparison:
        samples = {
            name: [Sample(x * length / 10, x * length / 10, int(x * 1e9)) for x in xs] for name, xs in factors.items()
        }
        return PhaseComparison(phase, length, length, samples)

    subject = Subject(
        "qwen3-4b, random bfloat16 weights", 8 * 10**9, 36, "fresh", 8, 1, ("q", "o"), 10**6, 9216, {"AddMM": 2.0}
    )
    comparisons = [comparison(phase, length) for length in lengths for phase in ("prefill", "decode")]
    machine = "A processor with a long name (CPU), Linux x86_64, " + ", ".join(["a version 1.2.3"] * 6)
    return BenchmarkReport(machine, "cpu_seconds", subject, batch, 64, 2048, 3, comparisons)


def test_what_the_machine_is_too_noisy_for_is_said(capsys):
    report = made_report([512])
    assert [(each.phase, variant) for each, variant, _ in report.unclear()] == [
        ("prefill", "read_only"),
        ("decode", "read_only"),
    ]
    print_tables(benchmark_tables(report))
    noise = capsys.readouterr().out.partition("Noise")[2]
    assert "prefill 512  ±0.9%; too noisy to tell: read-only (+0.1%, ±0.9%)" in noise
    assert "too noisy to tell: δ-mem (" not in noise


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[64], [512, 2048, 8192], [1, 100_000], list(range(1000, 9000, 250))])
def test_the_figure_has_labels_that_can_be_read(lengths, monkeypatch):
    figure = benchmark_figure(made_report(lengths, batch=8))
    shown = assert_readable(figure, monkeypatch)
    assert shown.count("tokens of the prompt") == shown.count("tokens/s") == shown.count("CPU time ÷ frozen") == 2
    assert {"frozen", "δ-mem", "read-only", "noise (frozen against itself)"} <= set(shown)
    assert shown.count(f"{lengths[0]:,}") >= 2
    assert all(axes.get_title(loc="left") in shown for axes in figure.axes)


def test_the_figure_shows_the_figures():
    throughput, costs = benchmark_figure(made_report([2048, 512])).axes[:2]
    places = throughput.containers[1].lines[0].get_xdata()
    assert list(places) == [512, 2048]
    assert list(throughput.containers[0].lines[0].get_ydata()) == pytest.approx([10, 10])
    assert list(costs.containers[1].lines[0].get_ydata()) == pytest.approx([1.05, 1.05])
    assert all(bar.get_height() == pytest.approx(2 * 1.57 * 0.01 / math.sqrt(3)) for bar in costs.containers[0])
    assert all(bar.get_y() + bar.get_height() / 2 == pytest.approx(1) for bar in costs.containers[0])
