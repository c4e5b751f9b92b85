"""Compare the speed with what was promised: `python -m tools.measure.bench` (or `make bench`).

Prints each figure with its target, and ends with exit code 1 where one is missed by more than the measured noise. On a
GPU the figures are those of Qwen3-4B's shape; elsewhere those of a small model, in float32 and processor time.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_deltamem.recurrence import ops
from mlx_deltamem.benchmarking.measure import Bench, Comparison
from mlx_deltamem.benchmarking.models import (
    DELTA_MEM,
    FRESH_ADAPTER,
    FROZEN,
    FROZEN_AGAIN,
    Models,
    with_and_without,
)
from mlx_deltamem.benchmarking.report import clock, machine
from mlx_deltamem.benchmarking.shapes import random_model
from mlx_deltamem.benchmarking.workloads import Workload, workload
from mlx_deltamem.benchmarking.dispatches import added_primitives
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.benchmarking.table import CLOCKS
from tools.measure import scan_speed
from tools.measure.fused_graph import count_fused

_VARIANTS = (FROZEN, FROZEN_AGAIN, DELTA_MEM)
_ROUNDS = 5
# A decode step is short, and many short rounds tell more than a few long ones.
_DECODE_ROUNDS, _DECODE_TOKENS = 20, 12
_BATCH, _BATCH_CONTEXT = 8, 256


@dataclass(frozen=True)
class Figure:
    """A figure and what it must be.

    Attributes:
        name: What was measured.
        target: What it may be at most, or must be at least; None for a yardstick, shown to compare with.
        measured, noise: What it is, and how far from the truth that may be.
        at_least: Whether more is better.
    """

    name: str
    target: float | None
    measured: float
    noise: float = 0.0
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """`pass`, `MISS`, or `within noise` where the target is missed by no more than that; `yardstick`."""
        if self.target is None:
            return "yardstick"
        missed_by = self.target - self.measured if self.at_least else self.measured - self.target
        if missed_by <= 0:
            return "pass"
        return "MISS" if missed_by > self.noise else "within noise"


def main() -> None:
    on_gpu = mx.default_device().type == mx.gpu
    mx.random.seed(0)
    figures = list(gpu_figures() if on_gpu else cpu_figures())
    Console(width=110, highlight=False).print(figures_table(figures))
    sys.exit(any(figure.verdict == "MISS" for figure in figures))


def cpu_figures() -> Iterator[Figure]:
    """What can be told without a GPU: a model of hidden size 512 with 8 layers, float32."""
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
    """Qwen3-4B's shape on a GPU, in bfloat16 and in 4 bits."""
    for bits, kind in ((None, "bfloat16"), (4, "4 bits")):
        models = with_and_without(random_model("qwen3-4b", mx.bfloat16, bits), FRESH_ADAPTER)
        yield time_ratio(f"decode at context 2,048, {kind}", 1.05, decode(models, prompts(models, 1, 2048)))
        yield batch_ratio(f"decode at context {_BATCH_CONTEXT}, batch of {_BATCH}, {kind}", models)
        comparison = prefill(models, prompts(models, 1, 8192))
        yield time_ratio(f"prefill 8,192 tokens, {kind}", 1.02, comparison)
        yield peak_ratio(f"peak memory, prefill 8,192 tokens, {kind}", comparison)
        yield Figure(f"primitives added per layer, fused path, {kind}", 4, primitives(models))


def time_ratio(name: str, target: float | None, comparison: Comparison) -> Figure:
    """The time that δ-mem takes, relative to the frozen backbone."""
    ratio = comparison.ratio(DELTA_MEM, clock())
    return Figure(name, target, ratio.quartiles.median, ratio.noise)


def batch_ratio(name: str, models: Models) -> Figure:
    """The same for a batch, which is to be no worse than a single sequence of that context."""
    one, several = (decode(models, prompts(models, batch, _BATCH_CONTEXT)) for batch in (1, _BATCH))
    single = one.ratio(DELTA_MEM, clock())
    figure = time_ratio(name, single.quartiles.median, several)
    return replace(figure, noise=figure.noise + single.noise)


def peak_ratio(name: str, comparison: Comparison) -> Figure:
    """The memory that δ-mem takes at most, relative to the frozen backbone."""
    ratio = comparison.ratio(DELTA_MEM, "peak_bytes")
    return Figure(name, 1.01, ratio.quartiles.median, ratio.noise)


def prompts(models: Models, batch: int, length: int) -> Workload:
    vocabulary = models.frozen(mx.array([[0]])).shape[-1]
    return workload(mx.random.randint(0, vocabulary, (batch, length)), _DECODE_TOKENS)


def primitives(models: Models) -> float:
    """What a layer's memory adds to the graph of a decode step, views not counted."""
    return sum(added_primitives(models.attached, models.frozen).values())


def prefill(models: Models, work: Workload) -> Comparison:
    with reading_progress(f"Reading {work.prompts.size:,} tokens") as progress:
        return Bench(models, _ROUNDS, _VARIANTS).prefill(work, progress)


def decode(models: Models, work: Workload) -> Comparison:
    with reading_progress(f"Generating after {work.prompts.size:,} tokens") as progress:
        return Bench(models, _DECODE_ROUNDS, _VARIANTS).decode(work, progress)


def prefill_once(models: Models, work: Workload) -> Comparison:
    """One round, for the memory: that is the same each time, or almost."""
    with reading_progress(f"Reading {work.prompts.size:,} tokens") as progress:
        return Bench(models, 1, _VARIANTS, warm_up=False).prefill(work, progress)


def figures_table(figures: list[Figure]) -> Table:
    """The figures, their targets, and what became of them."""
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
