"""The tables of a benchmark on the terminal."""

from rich.console import RenderableType

from mlx_deltamem.benchmarking.measure import PhaseComparison
from mlx_deltamem.benchmarking.models import DELTA_MEM, FROZEN, FROZEN_AGAIN, READ_ONLY
from mlx_deltamem.benchmarking.paired import Quartiles
from mlx_deltamem.benchmarking.report import BenchmarkReport
from mlx_deltamem.show.tables import columns, count, facts

NAMES = {FROZEN: "frozen", FROZEN_AGAIN: "frozen again", DELTA_MEM: "δ-mem", READ_ONLY: "read-only"}
CLOCKS = {"wall_seconds": "wall time", "cpu_seconds": "CPU time"}


def benchmark_tables(report: BenchmarkReport) -> list[RenderableType]:
    """The tables of a benchmark: the measured models, the results of both phases, and the noise."""
    tables = [_subject(report)]
    for phase, title in (("prefill", "Reading prompts"), ("decode", "Generating tokens, after prompts")):
        tables.append(_figures(report, phase, title))
    return [*tables, _judgement(report)]


def _subject(report: BenchmarkReport) -> RenderableType:
    subject = report.subject
    rows = {
        "machine": report.machine,
        "model": f"{subject.model}, {_size(subject.model_bytes)}",
        "adapter": f"{subject.adapter}, rank {subject.rank}, {count(subject.state_heads, 'state heads')}, corrects "
        f"{', '.join(subject.delta_heads) or 'nothing'}; {subject.adapter_parameters:,} parameters",
        "memory": f"{subject.state_bytes:,} bytes a sequence, in {count(subject.layers, 'layers')}",
        "graph": f"{sum(subject.primitives.values()):g} primitives added per layer and decode step, views not counted",
        "measured": f"{report.num_trials} rounds, {count(report.batch_size, 'sequences')}, "
        f"{count(report.generation_tokens, 'tokens')} generated for each, "
        f"prompts read in steps of {report.prefill_step_size:,}",
    }
    return facts("Benchmark", rows)


def _figures(report: BenchmarkReport, phase: str, title: str) -> RenderableType:
    headings = ["prompt\ntokens", "variant", "tokens/s", "IQR", f"{CLOCKS[report.clock]}\n÷ frozen", "quartiles"]
    headings += ["peak\nmemory"] if phase == "prefill" else []
    table = columns(title, *headings, texts=(1,))
    for comparison in report.comparisons:
        if comparison.phase == phase:
            for name in NAMES:
                table.add_row(*_row(comparison, name, report.clock))
            table.add_section()
    return table


def _row(comparison: PhaseComparison, variant: str, clock: str) -> list[str]:
    """The row of a variant: its throughput, and its cost relative to the frozen backbone."""
    is_first = variant == FROZEN
    speed = comparison.tokens_per_second(variant)
    ratio = comparison.ratio(variant, clock).quartiles
    cells = [
        f"{comparison.prompt_tokens:,}" if is_first else "",
        NAMES[variant],
        f"{speed.median:,.{1 if speed.median < 1000 else 0}f}",
        f"{speed.range / speed.median:.1%}",
        "1" if is_first else f"{ratio.median:.3f}",
        "" if is_first else f"{ratio.low:.3f}–{ratio.high:.3f}",
    ]
    if "peak_bytes" in comparison.quantities:
        cells.append(_size(Quartiles.of(comparison.values(variant, "peak_bytes")).median))
    return cells


def _judgement(report: BenchmarkReport) -> RenderableType:
    """The noise, and the differences that are not larger."""
    rows = {
        f"{each.phase} {each.prompt_tokens:,}": f"±{each.ratio(FROZEN_AGAIN, report.clock).noise:.1%}"
        for each in report.comparisons
    }
    for each, variant, ratio in report.unclear():
        rows[f"{each.phase} {each.prompt_tokens:,}"] += (
            f"; too noisy to tell: {NAMES[variant]} ({ratio.quartiles.median - 1:+.1%}, ±{ratio.noise:.1%})"
        )
    return facts(f"Noise: the frozen backbone against itself, {CLOCKS[report.clock]}", rows)


def _size(total: float) -> str:
    return f"{total / 1e9:.3f} GB"
