"""Measure the cost of a memory: the frozen backbone, δ-mem, and δ-mem that is only read, side by side.

All variants run in one process on one set of weights. Each round runs every variant once, and ratios are taken within a
round. The frozen backbone runs twice in each round, which shows how far the ratios can be trusted. The tables show
medians and quartiles.

`--json` prints one object with these fields. The docstring of the named class explains each field.

- `benchmarking.report.BenchmarkReport`: machine, clock, batch_size, generation_tokens, prefill_step_size, num_trials
- `benchmarking.report.Subject`, as `subject`: model, model_bytes, layers, adapter, rank, state_heads, delta_heads,
  adapter_parameters, state_bytes, primitives (by name)
- `benchmarking.measure.PhaseComparison`, a list as `comparisons`: phase, prompt_tokens, tokens, variants. The variants
  are frozen, frozen_again, delta_mem and read_only. Each has tokens_per_second (low, median, high) and, as lists over
  the rounds, wall_seconds, cpu_seconds and in the phase prefill peak_bytes. All but frozen also have the ratios to the
  frozen backbone: wall_seconds_ratio and so on (low, median, high, noise, is_clear)
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import mlx.core as mx
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.benchmarking.measure import Bench, PhaseComparison
from mlx_deltamem.benchmarking.models import FRESH_ADAPTER, Models, with_and_without
from mlx_deltamem.benchmarking.report import BenchmarkReport, Subject, clock, machine
from mlx_deltamem.benchmarking.shapes import SHAPES, random_model
from mlx_deltamem.benchmarking.table import benchmark_tables
from mlx_deltamem.benchmarking.workloads import workload
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import DEFAULT_MODEL
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import BITS, PLACE, POSITIVE, STEP, Rule
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.plot import add_plot_option, check_plot, load_figures
from mlx_deltamem.show.printable import json_document
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.show.tables import print_tables

_SEED = 0
# MLX ends the process, without an error, where memory is short.
_MOST_TOKENS = 2**24
# The tables show medians and quartiles.
_TRIALS = Rule(int, least=3)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.benchmark", description=__doc__.partition("\n")[0])
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", type=PLACE, help=f"Folder or Hub repo of the model (default: {DEFAULT_MODEL}).")
    models.add_argument("--shape", choices=SHAPES, help="A model of this shape with random weights instead.")
    parser.add_argument(
        "--adapter", type=PLACE, help="Folder or Hub repo of the adapter (default: a fresh random one of rank 8)."
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="With --shape: the dtype of the weights (default: bfloat16; on a CPU, where bfloat16 is slow, float32).",
    )
    parser.add_argument("--q-bits", type=BITS, choices=BITS.choices, help="With --shape: bits of quantised weights.")
    _add_sizes(parser)
    parser.add_argument("--json", action="store_true", help="Print one JSON document instead of tables.")
    add_plot_option(parser, "a figure of throughput and ratios")
    return parser


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options for the amount of work, under the names of mlx-lm's benchmark."""

    def add(*names: str, default: int | list[int], help: str, rule: Rule = POSITIVE) -> None:
        parser.add_argument(
            *names,
            type=rule,
            nargs="+" if isinstance(default, list) else None,
            default=default,
            metavar="N",
            help=f"{help} (default: %(default)s).",
        )

    add("--prompt-tokens", "-p", default=[512, 2048], help="Lengths of the prompts")
    add("--generation-tokens", "-g", default=64, help="Tokens to generate after each prompt")
    add("--batch-size", "-b", default=1, help="Sequences at a time")
    add("--num-trials", "-n", rule=_TRIALS, default=5, help="Rounds that count, after one that does not")
    add("--prefill-step-size", rule=STEP, default=DEFAULT_PREFILL_STEP_SIZE, help="Prompt tokens to process at a time")


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    _check_options(args)
    mx.random.seed(_SEED)
    models, subject = _prepare(args)
    # mlx-lm prints warnings about large models to standard output, which is for the results.
    with redirect_stdout(sys.stderr):
        comparisons = _measure(models, args)
    report = BenchmarkReport(
        machine=machine(),
        clock=clock(),
        subject=subject,
        batch_size=args.batch_size,
        generation_tokens=args.generation_tokens,
        prefill_step_size=args.prefill_step_size,
        num_trials=args.num_trials,
        comparisons=comparisons,
    )
    if args.json:
        print(json_document(report.as_document()))
    else:
        print_tables(benchmark_tables(report))
    if args.plot is not None:
        load_figures("benchmarking", dark=args.dark).draw(report, args.plot)
        if not args.json:
            print(f"Drew {args.plot}")


def _check_options(args: argparse.Namespace) -> None:
    for option in ("dtype", "q_bits"):
        if args.shape is None and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for --shape; a --model has its own")
    for length in (*args.prompt_tokens, args.generation_tokens):
        if args.batch_size * length > _MOST_TOKENS:
            raise ValueError(
                f"--batch-size is {args.batch_size:,} with sequences of {length:,} tokens; expected at most "
                f"{_MOST_TOKENS:,} tokens in a batch"
            )
    if args.plot is not None:
        check_plot(args.plot)


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
        model = load(name, trust_remote_code=args.trust_remote_code)[0]
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


if __name__ == "__main__":
    main()
