"""Chat in a terminal with a model that has a memory. Each chat is kept; --continue goes on with it."""

import argparse

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import (
    KEPT_CHATS,
    add_chat_options,
    add_model_options,
    add_pipeline_option,
    model_and_adapter,
)
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.files.atomic import user_path


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.chat", description=__doc__)
    kept = parser.add_argument_group("chats that are kept")
    kept.add_argument(
        "--continue",
        dest="go_on",
        nargs="?",
        const="",
        metavar="CHAT",
        help="Go on with a chat that was kept: the last one, or the one of this number or title. Without --model, its "
        "own model and adapter are loaded.",
    )
    listing = kept.add_mutually_exclusive_group()
    listing.add_argument("--list", action="store_true", help="Print the chats that were kept, and end.")
    listing.add_argument("--search", metavar="TEXT", help="Print the messages of these chats that have TEXT, and end.")
    kept.add_argument("--no-save", action="store_true", help="Do not keep this chat.")
    kept.add_argument(
        "--chats", type=user_path, default=user_path(KEPT_CHATS), help=f"Folder of the chats (default: {KEPT_CHATS})."
    )
    add_model_options(parser)
    add_pipeline_option(parser)
    add_chat_options(parser)
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    if args.go_on is not None and (args.session is not None or args.no_save):
        raise ValueError("--continue goes on with a chat that is kept; leave --session and --no-save out")
    if args.session is not None and args.no_save:
        raise ValueError(
            "--no-save keeps nothing, and --session names a file to keep the chat in; leave one of them out"
        )
    if not args.list and args.search is None:
        model_and_adapter(args)
    from mlx_deltamem.commands.chat import run

    run(args)


if __name__ == "__main__":
    main()
