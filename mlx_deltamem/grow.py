"""Make an adapter larger or more capable, as a start for more training: `mlx_deltamem.grow ADAPTER OUTPUT`.

A larger rank gives it wider states, a λ with its own weights lets it keep its state while it writes, and fewer layers
save memory. The new weights have next to no effect until `mlx_deltamem.train --start OUTPUT` trains them.
"""

import argparse

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.core.fields import SIZE
from mlx_deltamem.files.atomic import check_absent, user_path
from mlx_deltamem.options.rule import COUNT, SEED, Rule

# A factor of 1 adds as much as the key has.
_SHIFT = Rule(float, least=0, most=10)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.grow", description=__doc__)
    parser.add_argument("adapter", help="Folder or Hub repo of the adapter.")
    parser.add_argument("output", type=user_path, help="The folder to create.")
    parser.add_argument("--rank", type=SIZE, help="The new rank, larger than the adapter's.")
    parser.add_argument("--seed", type=SEED, help="Seed of the rows that are new with --rank (default: 0).")
    parser.add_argument(
        "--target-layers",
        type=COUNT,
        nargs="+",
        metavar="LAYER",
        help="Layers that keep their memory (default: all).",
    )
    parser.add_argument(
        "--no-couple-lambda",
        dest="couple_lambda",
        action="store_false",
        help="Give λ, the share of the state that is kept, its own weights; they start at 1 - β, its present value.",
    )
    parser.add_argument("--read-gate", action="store_true", help="Add gates on the reads; they start almost open.")
    parser.add_argument(
        "--key-shift",
        type=_SHIFT,
        metavar="FACTOR",
        help="Add the memory query of the token written before to each key, multiplied by a factor that starts at "
        "FACTOR: with 0 nothing changes, with 1 it counts as much as the token itself.",
    )
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    if not (args.rank or args.target_layers or not args.couple_lambda or args.read_gate or args.key_shift is not None):
        raise ValueError(
            "nothing would change; give --rank, --target-layers, --no-couple-lambda, --read-gate or --key-shift"
        )
    if args.seed is not None and args.rank is None:
        raise ValueError("--seed is the seed of the rows that are new with --rank; give both or neither")
    check_absent(args.output)
    from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
    from mlx_deltamem.adapters.grow import uncoupled, widened, with_key_shift, with_layers, with_read_gates
    from mlx_deltamem.core.adapter import layer_list

    adapter = load_with_card(args.adapter)
    if args.target_layers:
        adapter = with_layers(adapter, args.target_layers)
    if args.rank is not None:
        adapter = widened(adapter, args.rank, args.seed or 0)
    if not args.couple_lambda:
        adapter = uncoupled(adapter)
    if args.read_gate:
        adapter = with_read_gates(adapter)
    if args.key_shift is not None:
        adapter = with_key_shift(adapter, args.key_shift)
    save_with_card(adapter, args.output)
    print(
        f"Wrote {args.output}: {adapter.parameters:,} parameters in {layer_list(sorted(adapter.weights_by_layer()))}, "
        f"{adapter.state_bytes:,} bytes of memory for each sequence"
    )


if __name__ == "__main__":
    main()
