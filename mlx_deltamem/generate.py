"""Generate text with a model that has a memory, from one prompt or from several as the turns of one chat."""

import argparse

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import (
    add_chat_options,
    add_model_options,
    add_pipeline_option,
    model_and_adapter,
    true_or_false,
)
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.options import mlx_lm_defaults
from mlx_deltamem.options.rule import BITS, COUNT, GROUP_SIZE, PLACE, POSITIVE
from mlx_deltamem.sessions.turns.writing import NONE


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.generate", description=__doc__)
    add_model_options(parser)
    add_pipeline_option(parser)
    parser.add_argument(
        "--prompt",
        "-p",
        action="append",
        default=[],
        help="The message; `-` reads it from standard input. Several are the turns of one chat.",
    )
    parser.add_argument(
        "--prefill-response",
        metavar="TEXT",
        help="The beginning of each reply, which goes on from there. It is part of the reply.",
    )
    parser.add_argument(
        "--remember",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="Write a text file, or the messages of a .json file, into the memory before the first prompt; `-` reads "
        "standard input. May be given several times.",
    )
    add_chat_options(parser)
    parser.add_argument("--read-only", action="store_true", help="Read the memory without writing it.")
    parser.add_argument("--kv-bits", type=BITS, choices=BITS.choices, help="Quantise keys and values to these bits.")
    parser.add_argument(
        "--kv-group-size",
        type=GROUP_SIZE,
        choices=GROUP_SIZE.choices,
        default=64,
        help="Group size of that quantisation (default: 64).",
    )
    parser.add_argument(
        "--quantized-kv-start",
        type=COUNT,
        default=mlx_lm_defaults.QUANTIZED_KV_START,
        help="The first token to quantise at.",
    )
    parser.add_argument(
        "--ignore-chat-template", action="store_true", help="Use the prompts as plain text, without a chat."
    )
    parser.add_argument(
        "--max-kv-size",
        type=POSITIVE,
        help="With --ignore-chat-template: keep this many tokens of keys and values.",
    )
    parser.add_argument(
        "--draft-model",
        type=PLACE,
        help="Folder or Hub repo of a smaller model with the same tokens, which drafts the replies (speculative "
        "decoding). The replies stay the same without sampling.",
    )
    parser.add_argument(
        "--num-draft-tokens", type=POSITIVE, help="With --draft-model, tokens to draft at a time (default: 3)."
    )
    parser.add_argument("--verbose", type=true_or_false, default=True, help="False prints nothing but the replies.")
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    if not args.prompt and not args.remember:
        raise ValueError("there is no --prompt and no --remember; expected one of them")
    if args.read_only and args.write not in (None, NONE):
        raise ValueError(f"--read-only writes nothing, and --write is {args.write}; leave one of them out")
    if args.remember and (args.read_only or args.write == NONE):
        option = "--read-only" if args.read_only else f"--write {NONE}"
        raise ValueError(f"{option} writes nothing, and --remember writes a text; leave one of them out")
    if args.num_draft_tokens is not None and args.draft_model is None:
        raise ValueError("--num-draft-tokens goes with --draft-model; name a model that drafts, or leave it out")
    model_and_adapter(args)
    from mlx_deltamem.commands.generate import run

    run(args)


if __name__ == "__main__":
    main()
