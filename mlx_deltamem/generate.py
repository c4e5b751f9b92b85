"""Generate text with a model that has a memory, from one prompt or from several as the turns of one chat."""

import argparse
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START, GenerationResponse, stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.cli.command import command_of_ranks, standard_input
from mlx_deltamem.cli.entered import check_session_file, checked_message, checked_system_prompt
from mlx_deltamem.cli.options import (
    add_chat_options,
    add_model_options,
    add_pipeline_option,
    load_spread_model,
    open_chat,
    reply_options,
    true_or_false,
)
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.cli.remembered import read_remembered
from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.spread import same_tokens, whole_states
from mlx_deltamem.core.use import read_only
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.inspection.states import bytes_held, norm, shape_held, squares, state_arrays
from mlx_deltamem.options.rule import BITS, COUNT, GROUP_SIZE, POSITIVE
from mlx_deltamem.sessions.prefill import window
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.writing import NONE
from mlx_deltamem.show.printable import printable
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.show.streams import keeping_output_failures


class _KvOptions(TypedDict, total=False):
    """Keyword arguments of `mlx_lm.stream_generate` about quantised keys and values, as there."""

    kv_bits: int
    kv_group_size: int
    quantized_kv_start: int


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
        "--quantized-kv-start", type=COUNT, default=DEFAULT_QUANTIZED_KV_START, help="The first token to quantise at."
    )
    parser.add_argument(
        "--ignore-chat-template", action="store_true", help="Use the prompts as plain text, without a chat."
    )
    parser.add_argument(
        "--max-kv-size",
        type=POSITIVE,
        help="With --ignore-chat-template: keep this many tokens of keys and values.",
    )
    parser.add_argument("--verbose", type=true_or_false, default=True, help="False prints nothing but the replies.")
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    if not args.prompt and not args.remember:
        raise ValueError("there is no --prompt and no --remember; expected one of them")
    prompts = [standard_input("the prompt") if prompt == "-" else prompt for prompt in args.prompt]
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    model, tokenizer = load_spread_model(args)
    is_chat = tokenizer.has_chat_template and not args.ignore_chat_template
    _check(args, is_chat)
    # A cache of a given size takes a text of any length.
    longest = None if args.max_kv_size is not None else window(model)
    prompts = [checked_message(prompt, "the prompt", longest, tokenizer) for prompt in prompts]
    answer = _chat if is_chat else _continue_text
    states = answer(model, tokenizer, prompts, args)
    if args.verbose:
        print(f"Memory: {_memory_line(states)}")


def _check(args: argparse.Namespace, is_chat: bool) -> None:
    for option in ("session", "history", "system_prompt"):
        if not is_chat and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for chats; this runs without a chat template")
    if not is_chat and (args.remember or args.write is not None):
        raise ValueError("--remember and --write are for chats; this runs without a chat template")
    if args.read_only and args.write not in (None, NONE):
        raise ValueError(f"--read-only writes nothing, and --write is {args.write}; leave one of them out")
    if args.max_kv_size is not None and is_chat:
        raise ValueError("--max-kv-size is for --ignore-chat-template; a chat takes --history NUMBER")


def _chat(
    model: nn.Module, tokenizer: TokenizerWrapper, prompts: list[str], args: argparse.Namespace
) -> dict[int, mx.array]:
    """Answer the prompts as the turns of a chat; returns the memory after the last one.

    Each turn is saved when it has ended. With a session file, no turn is lost because its output cannot be printed.
    """
    chat = open_chat(model, tokenizer, args)
    options, kv_options = reply_options(args), _kv_options(args)
    with nullcontext() if args.session is None else keeping_output_failures():
        for path in args.remember:
            with reading_progress(f"Reading {path}", args.verbose) as progress:
                chat.remember(read_remembered(path), prefill_step_size=args.prefill_step_size, progress=progress)
            _save(chat, args)
        for prompt in prompts:
            with reading_progress("Reading the prompt", args.verbose) as progress:
                responses = chat.stream(
                    prompt, read_only=args.read_only, prompt_progress_callback=progress, **options, **kv_options
                )
                _print_reply(responses, args.verbose)
            _save(chat, args)
    return chat.memory


def _save(chat: ChatSession, args: argparse.Namespace) -> None:
    if args.session is not None:
        chat.save(args.session, args.save_kv)


def _continue_text(
    model: nn.Module, tokenizer: TokenizerWrapper, prompts: list[str], args: argparse.Namespace
) -> dict[int, mx.array]:
    """Continue each prompt as plain text, all in one prompt cache; returns the memory after the last one."""
    cache = make_prompt_cache(model, args.max_kv_size)
    options, kv_options = reply_options(args), _kv_options(args)
    options["sampler"] = same_tokens(model, options["sampler"])
    for prompt in prompts:
        reading = read_only(model) if args.read_only else nullcontext()
        with reading, reading_progress("Reading the prompt", args.verbose) as progress:
            responses = stream_generate(
                model,
                tokenizer,
                prompt,
                prompt_cache=cache,
                prompt_progress_callback=progress,
                **options,
                **kv_options,
            )
            _print_reply(responses, args.verbose)
    states = whole_states(model, cache[-1].cache)
    return {layer: state for layer, state in enumerate(states) if state.size}


def _kv_options(args: argparse.Namespace) -> _KvOptions:
    if args.kv_bits is None:
        return {}
    return {
        "kv_bits": args.kv_bits,
        "kv_group_size": args.kv_group_size,
        "quantized_kv_start": args.quantized_kv_start,
    }


def _print_reply(responses: Iterable[GenerationResponse], verbose: bool) -> None:
    """Print a reply as it is generated, and mlx-lm's statistics after it."""
    response = None
    for response in responses:
        if verbose and response.generation_tokens == 1:
            print("=" * 10)
        print(printable(response.text), end="", flush=True)
    print()
    if verbose and response is not None:
        print("=" * 10)
        print(f"Prompt: {response.prompt_tokens} tokens, {response.prompt_tps:.3f} tokens-per-sec")
        print(f"Generation: {response.generation_tokens} tokens, {response.generation_tps:.3f} tokens-per-sec")
        print(f"Peak memory: {response.peak_memory:.3f} GB")


def _memory_line(states: dict[int, mx.array]) -> str:
    arrays = state_arrays(states)
    norms = [norm(state) for state in squares(arrays).values()]
    shape = "x".join(map(str, shape_held(arrays)))
    return f"{len(arrays)} layers of {shape}, {bytes_held(arrays):,} bytes, norm {min(norms):.3f} to {max(norms):.3f}"


if __name__ == "__main__":
    main()
