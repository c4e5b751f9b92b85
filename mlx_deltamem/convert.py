"""Convert adapters: from the PyTorch files of the reference or the files of other MLX ports, and back to PyTorch.

With `--session` it converts a chat instead: from its session file to the session folder of the reference or to the
other MLX port's file of states, or from one of these two to the other.
"""

import argparse

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.cli.publishing import add_upload_options


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.convert", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--torch-path",
        help="The adapter to convert: a folder or Hub repo (USER/NAME) in any of the four formats. "
        "With --to torch, the folder to write.",
    )
    what.add_argument(
        "--session",
        nargs=2,
        metavar=("CHAT", "TARGET"),
        help="A chat to convert (a session file, a session folder of the reference, an .npz file of states) and the "
        "place to write to: a folder with --to torch, an .npz file with --to npz.",
    )
    parser.add_argument(
        "--mlx-path", help="The folder to write (default: mlx_adapter). With --to torch, the adapter to convert."
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="The type of the numbers written (default: as in the adapter; float32 for a chat).",
    )
    parser.add_argument(
        "--to",
        choices=["mlx", "torch", "npz"],
        default="mlx",
        help="The format to write (default: mlx); npz for chats.",
    )
    add_upload_options(parser)
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    _check_options(args)
    args.mlx_path = args.mlx_path or "mlx_adapter"
    from mlx_deltamem.commands.convert import run

    run(args)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together before anything is converted."""
    if args.upload_repo is None:
        if args.private or args.base_model or args.license or args.yes:
            raise ValueError("--private, --base-model, --license and --yes go with --upload-repo USER/NAME")
    elif args.to != "mlx":
        raise ValueError("--upload-repo goes with --to mlx; only mlx_deltamem's own format is published")
    if args.session is not None and (args.mlx_path is not None or args.upload_repo is not None):
        option = "--mlx-path" if args.mlx_path is not None else "--upload-repo"
        raise ValueError(f"{option} is for adapters, and --session CHAT TARGET converts a chat; leave {option} out")
    if args.to == "npz" and args.session is None:
        raise ValueError("--to npz goes with --session; an adapter goes --to mlx or --to torch")


if __name__ == "__main__":
    main()
