"""Train a δ-mem adapter for a frozen model: the history is written into the memory, the answer is read from it."""

import argparse

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.options.arguments import add_options
from mlx_deltamem.options.mlx_lm_habits import ALWAYS
from mlx_deltamem.options.option import flag
from mlx_deltamem.training.recipes import PAPER_DATA, RECIPES
from mlx_deltamem.training.settings import CHECKPOINTED, DEFAULT_ADAPTER, GROUPS, ON_ERROR

_USAGE = """mlx_deltamem.train --model MODEL --data DATA --adapter-path FOLDER [-c FILE.yaml] [options]
       mlx_deltamem.train --recipe tsw --model MODEL --adapter-path FOLDER [options]
       mlx_deltamem.train --resume --adapter-path FOLDER
       mlx_deltamem.train --test --adapter-path FOLDER [--model MODEL --data DATA]"""


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser. Options that are not given are None."""
    parser = Parser(prog="mlx_deltamem.train", usage=_USAGE, description=__doc__)
    parser.add_argument("--model", help="Folder or Hub repo of the model; it is not changed.")
    parser.add_argument(
        "--data", help="Folder with train.jsonl and perhaps valid.jsonl and test.jsonl, or a data set on the Hub."
    )
    parser.add_argument("--adapter-path", help="Folder for the adapter and the run.")
    parser.add_argument("--start", "--adapter", help="Folder or Hub repo of an adapter to train further.")
    parser.add_argument(
        "-c", "--config", type=user_path, help="YAML file of options, like train_config.yaml; the command line wins."
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="Train as the paper's authors did, TSW, SSW or MSW: with their adapter, schedule, episodes, loss and data "
        f"set, {PAPER_DATA}. Options on the command line and in the YAML file win.",
    )
    parser.add_argument("--resume", action="store_true", help="Resume the run in --adapter-path.")
    parser.add_argument(
        "--train",
        action="store_true",
        default=None,
        help="Train: this is what the command does, except with --test alone.",
    )
    parser.add_argument(
        "--test",
        action="store_true",
        default=None,
        help="Test the adapter in --adapter-path on test.jsonl, without training; with --train or --resume, train "
        "first. The model, the data and the other options are those of the run in the folder, unless others are named.",
    )
    parser.add_argument(
        "--on-error", choices=ON_ERROR, help=f"What to do with unusable records (default: {ON_ERROR[0]})."
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    for title, kind in GROUPS.items():
        add_options(parser.add_argument_group(title), kind)
    group = parser.add_argument_group("adapter", "The configuration of a new adapter, as in delta_mem_config.json.")
    add_options(group, DEFAULT_ADAPTER, empty="all")
    parser.add_argument(
        "--grad-checkpoint", action="store_true", default=None, help=f"As --segment {CHECKPOINTED}, to save memory."
    )
    group = parser.add_argument_group("habits of mlx_lm.lora", "They may be given, and change nothing.")
    for name, meaning in ALWAYS.items():
        group.add_argument(flag(name), action="store_true", help=f"{meaning[0].upper()}{meaning[1:]}.")
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    from mlx_deltamem.commands.train import run

    run(args)


if __name__ == "__main__":
    main()
