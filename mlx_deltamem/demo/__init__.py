"""Show a memory at work with a small model: tell a fact, drop its text, and ask for it, with the memory and without."""

import argparse

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.demo", description=__doc__)
    parser.add_argument("--chat", action="store_true", help="Chat with the model of the demo instead.")
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    from mlx_deltamem.demo.run import run

    run(args)
