"""The work of `mlx_deltamem.benchmark`: the frozen backbone, δ-mem, and δ-mem that is only read, side by side."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import mlx.core as mx

from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.benchmarking.measure import Bench, PhaseComparison
from mlx_deltamem.benchmarking.models import FRESH_ADAPTER, Models, with_and_without
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.report import BenchmarkReport, Subject, clock, machine
from mlx_deltamem.benchmarking.table import benchmark_tables
from mlx_deltamem.benchmarking.workloads import workload
from mlx_deltamem.cli.opening import load_on_ranks
from mlx_deltamem.cli.options import DEFAULT_MODEL
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.plot import load_figures
from mlx_deltamem.show.printable import json_document
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.show.tables import print_tables

_SEED = 0


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        FileNotFoundError: The model or the adapter does not exist.
        ValueError: The adapter is damaged or does not fit the model, or the model cannot be split.
    """
    mx.random.seed(_SEED)
    models, subject = _prepare(args)
    # mlx-lm prints warnings about large models to standard output, which is for the results.
    with redirect_stdout(sys.stderr):
        comparisons = _measure(models, args)
    report = BenchmarkReport(
        machine=machine() if world().is_alone else f"{machine()}, rank 0 of {world().size}",
        clock=clock(),
        subject=subject,
        batch_size=args.batch_size,
        generation_tokens=args.generation_tokens,
        prefill_step_size=args.prefill_step_size,
        num_trials=args.num_trials,
        comparisons=comparisons,
    )
    if args.plot is not None:
        # Drawn first, because the reader of the output may close it.
        figures = load_figures("benchmarking", dark=args.dark)
        if world().is_first:
            figures.draw(report, args.plot)
    if args.json:
        print(json_document(report.as_document()))
    else:
        print_tables(benchmark_tables(report))
        if args.plot is not None:
            print(f"Drew {args.plot}")


def _prepare(args: argparse.Namespace) -> tuple[Models, Subject]:
    """Make the models to compare, and describe them.

    Raises:
        FileNotFoundError: The model or the adapter does not exist.
        ValueError: The adapter is damaged or does not fit the model.
    """
    if args.adapter is not None:
        # A wrong adapter is reported before the model is made, which takes time.
        load_adapter(args.adapter)
    if args.shape is None:
        name = args.model or DEFAULT_MODEL
        model = load_on_ranks(name, None, args.pipeline, args.trust_remote_code)[0]
    else:
        dtype = args.dtype or ("bfloat16" if mx.default_device().type == mx.gpu else "float32")
        bits = "" if args.q_bits is None else f", {args.q_bits} bits"
        name = f"{args.shape}, random {dtype} weights{bits}"
        with Console(stderr=True).status(f"Making {name}"):
            model = random_model(args.shape, getattr(mx, dtype), args.q_bits)
    models = with_and_without(model, args.adapter or FRESH_ADAPTER)
    return models, Subject.of(models, name, args.adapter or "fresh and random")


def _measure(models: Models, args: argparse.Namespace) -> Sequence[PhaseComparison]:
    bench = Bench(models, args.num_trials)
    vocabulary = models.frozen(mx.array([[0]])).shape[-1]
    comparisons = []
    for length in args.prompt_tokens:
        prompts = mx.random.randint(0, vocabulary, (args.batch_size, length))
        work = workload(prompts, args.generation_tokens, args.prefill_step_size)
        for measure, what in ((bench.prefill, "Reading"), (bench.decode, "Generating after")):
            with reading_progress(f"{what} {length:,} tokens") as progress:
                comparisons.append(measure(work, progress))
    return comparisons
