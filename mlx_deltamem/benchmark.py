"""Measure the cost of a memory: the frozen backbone, δ-mem, and δ-mem that is only read, side by side.

All variants run in one process on one set of weights. Each round runs every variant once, and ratios are taken within a
round. The frozen backbone runs twice in each round, which shows how far the ratios can be trusted. The tables show
medians and quartiles. Under mlx.launch the ranks hold the model together, and rank 0 measures and prints.

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

from mlx_deltamem.benchmarking.shapes import SHAPES
from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import ADAPTER_OPTION, DEFAULT_MODEL, add_pipeline_option
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options import mlx_lm_defaults
from mlx_deltamem.options.rule import BITS, PLACE, POSITIVE, STEP, Rule
from mlx_deltamem.ranks.launched import is_launched
from mlx_deltamem.show.plot import add_plot_option, check_dark, check_plot

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
        *ADAPTER_OPTION,
        dest="adapter",
        metavar="ADAPTER",
        type=PLACE,
        help="Folder or Hub repo of the adapter (default: a fresh random one of rank 8).",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="With --shape: the dtype of the weights (default: bfloat16; on a CPU, where bfloat16 is slow, float32).",
    )
    parser.add_argument("--q-bits", type=BITS, choices=BITS.choices, help="With --shape: bits of quantised weights.")
    add_pipeline_option(parser)
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
    add(
        "--prefill-step-size",
        rule=STEP,
        default=mlx_lm_defaults.PREFILL_STEP_SIZE,
        help="Prompt tokens to process at a time",
    )


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    _check_options(args)
    from mlx_deltamem.commands.benchmark import run

    run(args)


def _check_options(args: argparse.Namespace) -> None:
    if args.shape is not None and is_launched():
        raise ValueError(
            "--shape makes a whole model in one process; name a --model, which mlx.launch's ranks load in parts"
        )
    for option in ("pipeline", "trust_remote_code"):
        if args.shape is not None and getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} is for --model; a --shape is made on this machine")
    for option in ("dtype", "q_bits"):
        if args.shape is None and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for --shape; a --model has its own")
    for length in (*args.prompt_tokens, args.generation_tokens):
        if args.batch_size * length > _MOST_TOKENS:
            raise ValueError(
                f"--batch-size is {args.batch_size:,} with sequences of {length:,} tokens; expected at most "
                f"{_MOST_TOKENS:,} tokens in a batch"
            )
    check_dark(args.dark, args.plot)
    if args.plot is not None:
        check_plot(args.plot)


if __name__ == "__main__":
    main()
