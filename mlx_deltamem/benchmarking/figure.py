"""The figure of a benchmark: throughput, and the cost of the memory relative to the frozen backbone."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mlx_deltamem.benchmarking.measure import PhaseComparison
from mlx_deltamem.benchmarking.models import DELTA_MEM, FROZEN, FROZEN_AGAIN, READ_ONLY
from mlx_deltamem.benchmarking.paired import Quartiles
from mlx_deltamem.benchmarking.report import BenchmarkReport
from mlx_deltamem.benchmarking.table import CLOCKS, NAMES
from mlx_deltamem.show.style import BAND, LINES, WIDTH, add_title, save_figure, styled

_HEIGHT = 4.6
_MOST_LABELS = 8
_STYLES = dict(zip((FROZEN, DELTA_MEM, READ_ONLY), LINES, strict=True))
# Factors on the logarithmic axis of the lengths: the distance between variants, so that error bars do not hide each
# other; the half width of the bars of the noise; and the space at both ends.
_APART, _BAR, _END = 1.05, 1.13, 1.35


def draw(report: BenchmarkReport, path: Path) -> None:
    """Draw a benchmark to a file.

    Raises:
        OSError: The file cannot be written. An old file is unchanged.
    """
    save_figure(benchmark_figure(report), path)


@styled
def benchmark_figure(report: BenchmarkReport) -> Figure:
    """Draw reading prompts at the top, generating at the bottom, throughput at the left and ratios at the right."""
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    batch = "" if report.batch_size == 1 else f", {report.batch_size} sequences"
    add_title(figure, f"{report.subject.model}{batch}, on {report.machine}: medians, with quartiles as bars")
    grid = figure.subplots(2, 2, sharex=True)
    lengthening = sorted(report.comparisons, key=lambda each: each.prompt_tokens)
    for row, (phase, title) in zip(grid, (("prefill", "Reading prompts"), ("decode", "Generating")), strict=True):
        comparisons = [each for each in lengthening if each.phase == phase]
        _throughput(row[0], comparisons)
        row[0].set_title(f"{title}: throughput")
        _costs(row[1], comparisons, report.clock)
        row[1].set_title(f"{title}: cost")
    _label_lengths(grid[1], sorted({each.prompt_tokens for each in report.comparisons}))
    handles = [*grid[0, 0].get_legend_handles_labels()[0], *grid[0, 1].containers[:1]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _throughput(axes: Axes, comparisons: Sequence[PhaseComparison]) -> None:
    axes.set_ylabel("tokens/s")
    speeds = {variant: [each.tokens_per_second(variant) for each in comparisons] for variant in _STYLES}
    for variant, values in speeds.items():
        _line(axes, comparisons, variant, values)
    axes.set_ylim(0, 1.08 * max(each.high for values in speeds.values() for each in values))


def _costs(axes: Axes, comparisons: Sequence[PhaseComparison], clock: str) -> None:
    axes.set_ylabel(f"{CLOCKS[clock]} ÷ frozen")
    lengths = np.array([each.prompt_tokens for each in comparisons])
    noise = np.array([each.ratio(FROZEN_AGAIN, clock).noise for each in comparisons])
    width = lengths * (_BAR - 1 / _BAR)
    axes.bar(lengths / _BAR, 2 * noise, width, 1 - noise, align="edge", label="noise (frozen against itself)", **BAND)
    axes.use_sticky_edges = False
    axes.axhline(1, color=rcParams["text.color"], linewidth=0.6)
    for variant in (DELTA_MEM, READ_ONLY):
        _line(axes, comparisons, variant, [each.ratio(variant, clock).quartiles for each in comparisons])


def _line(axes: Axes, comparisons: Sequence[PhaseComparison], variant: str, values: Sequence[Quartiles]) -> None:
    place = _APART ** (list(_STYLES).index(variant) - 1)
    lengths = [each.prompt_tokens * place for each in comparisons]
    bars = [[each.median - each.low for each in values], [each.high - each.median for each in values]]
    medians = [each.median for each in values]
    axes.errorbar(lengths, medians, bars, label=NAMES[variant], capsize=2, **_STYLES[variant])


def _label_lengths(row: Sequence[Axes], lengths: Sequence[int]) -> None:
    left, right = lengths[0] / _END, lengths[-1] * _END
    labelled = [lengths[0]]
    for length in lengths[1:]:
        # Only if there is room for the label.
        if math.log(length / labelled[-1]) > math.log(right / left) / _MOST_LABELS:
            labelled.append(length)
    for axes in row:
        axes.set_xlabel("tokens of the prompt")
        axes.set_xscale("log", base=2)
        axes.set_xticks(labelled, [f"{length:,}" for length in labelled])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left, right)
