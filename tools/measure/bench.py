"""Compare the speed with its targets: `python -m tools.measure.bench` (or `make bench`).

Prints each figure and its target. The exit code is 1 if a target is missed by more than the measured noise, or if a
figure is worse than in an earlier run on the same machine (`--compare`). On a GPU the model has the shape of Qwen3-4B.
On a CPU it is a small model in float32, and times are processor times.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
from rich.console import Console

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
from mlx_deltamem.benchmarking.stopping import StoppingRule
from mlx_deltamem.benchmarking.table import CLOCKS
from mlx_deltamem.benchmarking.workloads import Workload, workload
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import Rule
from mlx_deltamem.recurrence import ops
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.show.progress import reading_progress
from tools.measure import scan_speed
from tools.measure.figures import Figure, Run, changes, collect, figures_table, left_open
from tools.measure.fused_graph import count_fused

_VARIANTS = (FROZEN, FROZEN_AGAIN, DELTA_MEM)
_ROUNDS = 5
# A decode step is short. Many short rounds give a smaller error than a few long ones.
_DECODE_TOKENS, _MOST_ROUNDS = 12, 200
# A call is one token, so there are many rounds. The memory joins the past of 64 tokens, which these include.
_FEWEST_CALLS, _MOST_CALLS = 140, 2000
_BATCH, _BATCH_CONTEXT = 8, 256


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.bench", description=__doc__)
    parser.add_argument(
        "--seconds",
        type=Rule(float, above=0),
        default=60.0,
        help="The most time for one figure, in seconds (default: %(default)s).",
    )
    parser.add_argument(
        "--minutes",
        type=Rule(float, above=0),
        default=30.0,
        help="No figure is begun after this time, in minutes (default: %(default)s).",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the figures to this file.")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="Compare with a file that --json wrote.")
    return parser


@command
def main() -> None:
    """Measure all figures. The exit code is 1 if a target is missed or a figure is worse than in the earlier run."""
    args = setup_arg_parser().parse_args()
    earlier = None if args.compare is None else Run.load(args.compare)
    on_gpu = mx.default_device().type == mx.gpu
    mx.random.seed(0)
    console, figures = Console(width=130, highlight=False), list[Figure]()

    def keep(figure: Figure) -> None:
        """Show and save a figure at once, so that a run that is cut off is of use."""
        figures.append(figure)
        noise = f" ± {figure.noise:.3f}" if figure.noise else ""
        console.print(f"{figure.name}: {figure.measured:.4g}{noise} ({figure.bound or 'no target'}) {figure.verdict}")
        if args.json is not None:
            Run(machine(), figures, is_complete=False).save(args.json)

    all_figures = gpu_figures(args.seconds) if on_gpu else cpu_figures(args.seconds)
    run = Run(machine(), figures, is_complete=collect(all_figures, args.minutes * 60, keep))
    if args.json is not None:
        run.save(args.json)
    title = f"{run.machine}\nRatios of {CLOCKS[clock()]} and memory: δ-mem ÷ frozen backbone"
    console.print(figures_table(run, title, earlier))
    for sentence in left_open(run, earlier):
        console.print(sentence)
    is_worse = earlier is not None and earlier.machine == run.machine and "WORSE" in changes(run, earlier).values()
    if is_worse or any(figure.verdict == "MISS" for figure in run.figures):
        sys.exit(1)


def cpu_figures(seconds: float) -> Iterator[Figure]:
    """Measure what a CPU can show: a float32 model of 8 layers with hidden size 512."""
    for scan in scan_speed.measure():
        yield Figure(f"scan of 2,048 tokens: {scan.name}", scan.target, scan.ratio, scan.spread, at_least=True)
    models = with_and_without(random_model("small", mx.float32), FRESH_ADAPTER)
    yield time_ratio("prefill 2,048 tokens", 1.03, prefill(models, prompts(models, 1, 2048)))
    with patch.object(ops, "delta_scan", delta_scan_reference):
        yield time_ratio("prefill 2,048 tokens, token loop", None, prefill(models, prompts(models, 1, 2048)))
    for context in (1024, 2048):
        work = prompts(models, 1, context)
        yield time_ratio(f"decode at context {context:,}", 1.03, calls(models, work, 1.03, seconds))
    work = prompts(models, _BATCH, _BATCH_CONTEXT)
    yield time_ratio(f"decode at context {_BATCH_CONTEXT}, batch of {_BATCH}", 1.03, calls(models, work, 1.03, seconds))
    fused = count_fused(lambda: added_primitives(models.attached, models.frozen))
    yield Figure("primitives added per layer, fused path", 4, sum(fused.values()))
    yield Figure("primitives added per layer, CPU path", 10, primitives(models))
    yield peak_ratio("peak memory, prefill 8,192 tokens", prefill_once(models, prompts(models, 1, 8192)))


def gpu_figures(seconds: float) -> Iterator[Figure]:
    """Measure a model of the shape of Qwen3-4B on a GPU, in bfloat16 and in 4 bits."""
    for bits, kind in ((None, "bfloat16"), (4, "4 bits")):
        models = with_and_without(random_model("qwen3-4b", mx.bfloat16, bits), FRESH_ADAPTER)
        yield time_ratio(
            f"decode at context 2,048, {kind}", 1.05, decode(models, prompts(models, 1, 2048), 1.05, seconds)
        )
        yield batch_ratio(f"decode at context {_BATCH_CONTEXT}, batch of {_BATCH}, {kind}", models, seconds)
        comparison = prefill(models, prompts(models, 1, 8192))
        yield time_ratio(f"prefill 8,192 tokens, {kind}", 1.02, comparison)
        yield peak_ratio(f"peak memory, prefill 8,192 tokens, {kind}", comparison)
        yield Figure(f"primitives added per layer, fused path, {kind}", 4, primitives(models))


def time_ratio(name: str, target: float | None, comparison: PhaseComparison) -> Figure:
    """Return the time of the model with δ-mem divided by the time of the frozen backbone."""
    ratio = comparison.ratio(DELTA_MEM, clock())
    return Figure(name, target, ratio.quartiles.median, ratio.noise, rounds=len(comparison.samples[DELTA_MEM]))


def batch_ratio(name: str, models: Models, seconds: float) -> Figure:
    """Return the time ratio of decoding a batch. Its target is the ratio of a single sequence with the same context."""
    works = (prompts(models, batch, _BATCH_CONTEXT) for batch in (1, _BATCH))
    one, several = (decode(models, work, None, seconds) for work in works)
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


def decode(models: Models, work: Workload, target: float | None, seconds: float) -> PhaseComparison:
    """Generate after the prompts as mlx-lm does, in rounds of a few tokens."""
    with reading_progress(f"Generating after {work.prompts.size:,} tokens") as progress:
        rule = StoppingRule(DELTA_MEM, clock(), target, seconds=seconds)
        return Bench(models, _MOST_ROUNDS, _VARIANTS, rule=rule).decode(work, progress)


def calls(models: Models, work: Workload, target: float, seconds: float) -> PhaseComparison:
    """Call each model with one token after the other, in rounds of one token."""
    with reading_progress(f"Calling after {work.prompts.size:,} tokens") as progress:
        rule = StoppingRule(DELTA_MEM, clock(), target, least=_FEWEST_CALLS, seconds=seconds)
        return Bench(models, _MOST_CALLS, _VARIANTS, rule=rule).calls(work, progress)


def prefill_once(models: Models, work: Workload) -> PhaseComparison:
    """Read the prompts once. Peak memory varies little, so one round is enough for it."""
    with reading_progress(f"Reading {work.prompts.size:,} tokens") as progress:
        return Bench(models, 1, _VARIANTS, warm_up=False).prefill(work, progress)


if __name__ == "__main__":
    main()
