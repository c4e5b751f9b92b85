"""Publish an adapter on the Hugging Face Hub."""

import argparse

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.cli.publishing import add_upload_options
from mlx_deltamem.files.atomic import user_path


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.upload", description=__doc__)
    parser.add_argument(
        "--path",
        "--adapter-path",
        "--adapter",
        dest="path",
        metavar="FOLDER",
        required=True,
        help="The adapter's folder.",
    )
    add_upload_options(parser, required=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="Check the folder and show what would be sent, without asking the Hub."
    )
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    from mlx_deltamem.commands.upload import upload_folder

    upload_folder(user_path(args.path), args, args.dry_run)


if __name__ == "__main__":
    main()
