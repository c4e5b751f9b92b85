"""Compare the speed with its targets: `python -m tools.measure.bench` (or `make bench`).

Prints each figure and its target. The exit code is 1 if a target is missed by more than the measured noise. On a GPU
the model has the shape of Qwen3-4B. On a CPU it is a small model in float32, and times are processor times.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_deltamem.benchmarking.dispatches import added_primitives
from mlx_deltamem.benchmarking.measure import Bench, PhaseComparison
from mlx_deltamem.benchmarking.models import (
    DELTA_MEM,
    FRESH_ADAPTER,
    FROZEN,
    FROZEN_AGAIN,
    Models,
    with_and_without,
)
from mlx_deltamem.benchmarking.report import clock, machine
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.table import CLOCKS
from mlx_deltamem.benchmarking.workloads import Workload, workload
from mlx_deltamem.recurrence import ops
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.show.progress import reading_progress
from tools.measure import scan_speed
from tools.measure.fused_graph import count_fused

_VARIANTS = (FROZEN, FROZEN_AGAIN, DELTA_MEM)
_ROUNDS = 5
# A decode step is short. Many short rounds give a smaller error than a few long ones.
_DECODE_ROUNDS, _DECODE_TOKENS = 20, 12
_BATCH, _BATCH_CONTEXT = 8, 256


@dataclass(frozen=True)
class Figure:
    """A measured figure and its target.

    Attributes:
        name: The name of the figure.
        target: The largest allowed value, or the smallest if `at_least`. None for a figure without a target.
        measured: The measured value.
        noise: The possible error of `measured`.
        at_least: True if larger values are better.
    """

    name: str
    target: float | None
    measured: float
    noise: float = 0.0
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """`pass`, `MISS`, `within noise` (missed by no more than the noise), or `yardstick` (there is no target)."""
        if self.target is None:
            return "yardstick"
        missed_by = self.target - self.measured if self.at_least else self.measured - self.target
        if missed_by <= 0:
            return "pass"
        return "MISS" if missed_by > self.noise else "within noise"


def main() -> None:
    """Measure all figures. The exit code is 1 if a target is missed."""
    on_gpu = mx.default_device().type == mx.gpu
    mx.random.seed(0)
    figures = list(gpu_figures() if on_gpu else cpu_figures())
    Console(width=110, highlight=False).print(figures_table(figures))
    sys.exit(any(figure.verdict == "MISS" for figure in figures))


def cpu_figures() -> Iterator[Figure]:
    """Measure what a CPU can show: a float32 model of 8 layers with hidden size 512."""
    for scan in scan_speed.measure():
        yield Figure(f"scan of 2,048 tokens: {scan.name}", scan.target, scan.ratio, scan.spread, at_least=True)
    models = with_and_without(random_model("small", mx.float32), FRESH_ADAPTER)
    yield time_ratio("prefill 2,048 tokens", 1.03, prefill(models, prompts(models, 1, 2048)))
    with patch.object(ops, "delta_scan", delta_scan_reference):
        yield time_ratio("prefill 2,048 tokens, token loop", None, prefill(models, prompts(models, 1, 2048)))
    yield time_ratio("decode at context 2,048", 1.03, decode(models, prompts(models, 1, 2048)))
    yield batch_ratio(f"decode at context {_BATCH_CONTEXT}, batch of {_BATCH}", models)
    fused = count_fused(lambda: added_primitives(models.attached, models.frozen))
    yield Figure("primitives added per layer, fused path", 4, sum(fused.values()))
    yield Figure("primitives added per layer, CPU path", 10, primitives(models))
    yield peak_ratio("peak memory, prefill 8,192 tokens", prefill_once(models, prompts(models, 1, 8192)))


def gpu_figures() -> Iterator[Figure]:
    """Measure a model of the shape of Qwen3-4B on a GPU, in bfloat16 and in 4 bits."""
    for bits, kind in ((None, "bfloat16"), (4, "4 bits")):
        models = with_and_without(random_model("qwen3-4b", mx.bfloat16, bits), FRESH_ADAPTER)
        yield time_ratio(f"decode at context 2,048, {kind}", 1.05, decode(models, prompts(models, 1, 2048)))
        yield batch_ratio(f"decode at context {_BATCH_CONTEXT}, batch of {_BATCH}, {kind}", models)
        comparison = prefill(models, prompts(models, 1, 8192))
        yield time_ratio(f"prefill 8,192 tokens, {kind}", 1.02, comparison)
        yield peak_ratio(f"peak memory, prefill 8,192 tokens, {kind}", comparison)
        yield Figure(f"primitives added per layer, fused path, {kind}", 4, primitives(models))


def time_ratio(name: str, target: float | None, comparison: PhaseComparison) -> Figure:
    """Return the time of the model with δ-mem divided by the time of the frozen backbone."""
    ratio = comparison.ratio(DELTA_MEM, clock())
    return Figure(name, target, ratio.quartiles.median, ratio.noise)


def batch_ratio(name: str, models: Models) -> Figure:
    """Return the time ratio of decoding a batch. Its target is the ratio of a single sequence with the same context."""
    one, several = (decode(models, prompts(models, batch, _BATCH_CONTEXT)) for batch in (1, _BATCH))
    single = one.ratio(DELTA_MEM, clock())
    figure = time_ratio(name, single.quartiles.median, several)
    return replace(figure, noise=figure.noise + single.noise)


def peak_ratio(name: str, comparison: PhaseComparison) -> Figure:
    """Return the peak memory of the model with δ-mem divided by that of the frozen backbone."""
    ratio = comparison.ratio(DELTA_MEM, "peak_bytes")
    return Figure(name, 1.01, ratio.quartiles.median, ratio.noise)


def prompts(models: Models, batch: int, length: int) -> Workload:
    """Return `batch` prompts of `length` random tokens, and how many tokens to decode after them."""
    vocabulary = models.frozen(mx.array([[0]])).shape[-1]
    return workload(mx.random.randint(0, vocabulary, (batch, length)), _DECODE_TOKENS)


def primitives(models: Models) -> float:
    """Return how many primitives the memory of one layer adds to the graph of a decode step. Views do not count."""
    return sum(added_primitives(models.attached, models.frozen).values())


def prefill(models: Models, work: Workload) -> PhaseComparison:
    """Read the prompts, in several rounds."""
    with reading_progress(f"Reading {work.prompts.size:,} tokens") as progress:
        return Bench(models, _ROUNDS, _VARIANTS).prefill(work, progress)


def decode(models: Models, work: Workload) -> PhaseComparison:
    """Decode after the prompts, in several rounds."""
    with reading_progress(f"Generating after {work.prompts.size:,} tokens") as progress:
        return Bench(models, _DECODE_ROUNDS, _VARIANTS).decode(work, progress)


def prefill_once(models: Models, work: Workload) -> PhaseComparison:
    """Read the prompts once. Peak memory varies little, so one round is enough for it."""
    with reading_progress(f"Reading {work.prompts.size:,} tokens") as progress:
        return Bench(models, 1, _VARIANTS, warm_up=False).prefill(work, progress)


def figures_table(figures: list[Figure]) -> Table:
    """Return the table of the figures, their targets and verdicts."""
    title = f"{machine()}\nRatios of {CLOCKS[clock()]} and memory: δ-mem ÷ frozen backbone"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for heading in ("target", "measured", "noise", "verdict"):
        table.add_column(heading, justify="right")
    for figure in figures:
        target = "" if figure.target is None else f"{'≥' if figure.at_least else '≤'} {figure.target:.4g}"
        noise = f"±{figure.noise:.3f}" if figure.noise else ""
        table.add_row(figure.name, target, f"{figure.measured:.4g}", noise, figure.verdict)
    return table


if __name__ == "__main__":
    main()
