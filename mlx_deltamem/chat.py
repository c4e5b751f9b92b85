"""Chat in a terminal with a model that has a memory."""

import argparse

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import add_chat_options, add_model_options, model_and_adapter
from mlx_deltamem.cli.parser import Parser


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.chat", description=__doc__)
    add_model_options(parser)
    add_chat_options(parser)
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    model_and_adapter(args)
    from mlx_deltamem.commands.chat import run

    run(args)


if __name__ == "__main__":
    main()
