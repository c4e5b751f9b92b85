"""The work of `mlx_deltamem.generate`: replies to prompts, as the turns of a chat or as plain text."""

import argparse
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.loading import load
from mlx_deltamem.cli.command import standard_input
from mlx_deltamem.cli.entered import check_session_file, checked_message, checked_system_prompt
from mlx_deltamem.cli.interrupted import steps_done
from mlx_deltamem.cli.opening import load_spread_model, open_chat, reply_options
from mlx_deltamem.cli.quantised import check_quantised
from mlx_deltamem.cli.remembered import name_of, read_remembered, turn_of
from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.drafting import with_draft
from mlx_deltamem.core.spread import same_tokens, whole_states
from mlx_deltamem.core.use import read_only
from mlx_deltamem.files.text import check_text
from mlx_deltamem.inspection.states import bytes_held, norm, shape_held, squares, state_arrays
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.reading.prefill import window
from mlx_deltamem.sessions.replies.beginning import Beginning
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.template.text import has_template
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.writing import NONE
from mlx_deltamem.show.printable import printable
from mlx_deltamem.show.progress import reading_progress
from mlx_deltamem.show.streams import keeping_output_failures

# mlx-lm's own number of tokens to draft at a time.
_DRAFT_TOKENS = 3


class _FurtherOptions(TypedDict, total=False):
    """Keyword arguments of `mlx_lm.stream_generate` that only this command has, as there."""

    kv_bits: int
    kv_group_size: int
    quantized_kv_start: int
    draft_model: nn.Module
    num_draft_tokens: int


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        OSError: A file does not exist, or cannot be read or written.
        ValueError: The options do not fit the model or the session, or a text or file is unusable.
    """
    if args.draft_model is not None and not world().is_alone:
        raise ValueError("--draft-model is for one machine, and mlx.launch has started several; leave one of them out")
    prompts = [standard_input("the prompt") if prompt == "-" else prompt for prompt in args.prompt]
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    if args.prefill_response is not None:
        args.prefill_response = check_text(args.prefill_response, "--prefill-response")
    # All is read and checked before the first text is written.
    args.remember = [(name_of(path), read_remembered(path)) for path in args.remember]
    model, tokenizer = load_spread_model(args)
    is_chat = has_template(tokenizer) and not args.ignore_chat_template
    _check(args, is_chat)
    check_quantised(model, args)
    draft = None if args.draft_model is None else _load_draft(tokenizer, args)
    # A cache of a given size takes a text of any length.
    longest = None if args.max_kv_size is not None else window(model)
    prompts = [checked_message(prompt, "the prompt", longest, tokenizer) for prompt in prompts]
    if args.prefill_response is not None:
        args.prefill_response = checked_message(args.prefill_response, "--prefill-response", longest, tokenizer)
    answer = _chat if is_chat else _continue_text
    states = answer(model, tokenizer, prompts, args, draft)
    if args.verbose:
        print(f"Memory: {_memory_line(states)}")


def _check(args: argparse.Namespace, is_chat: bool) -> None:
    for option in ("session", "history", "system_prompt", "prefill_response"):
        if not is_chat and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for chats; this runs without a chat template")
    if not is_chat and (args.remember or args.write is not None):
        raise ValueError("--remember and --write are for chats; this runs without a chat template")
    if args.ignore_chat_template and args.chat_template_config:
        raise ValueError("--chat-template-config does not go with --ignore-chat-template; leave one of them out")
    if args.save_kv and args.session is None:
        raise ValueError("--save-kv is for a --session FILE; name one, or leave --save-kv out")
    if args.max_kv_size is not None and is_chat:
        raise ValueError("--max-kv-size is for --ignore-chat-template; a chat takes --history NUMBER")
    for option in ("kv_bits", "max_kv_size", "prefill_response"):
        if args.draft_model is not None and getattr(args, option) is not None:
            raise ValueError(f"--draft-model does not go with --{option.replace('_', '-')}; leave one of them out")


def _load_draft(tokenizer: TokenizerWrapper, args: argparse.Namespace) -> nn.Module:
    """Load the model of `--draft-model`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It has other tokens than the model.
    """
    draft, other = load(args.draft_model, trust_remote_code=args.trust_remote_code)
    if other.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"--draft-model {args.draft_model} has {other.vocab_size:,} tokens and the model {tokenizer.vocab_size:,}; "
            "expected a model with the same tokenizer"
        )
    return draft


def _chat(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: list[str],
    args: argparse.Namespace,
    draft: nn.Module | None,
) -> dict[int, mx.array]:
    """Answer the prompts as the turns of a chat; returns the memory after the last one.

    Each turn is saved when it has ended. With a session file, no turn is lost because its output cannot be printed.
    """
    options = reply_options(tokenizer, args)
    begin = [] if args.prefill_response is None else token_ids(tokenizer, args.prefill_response)
    if begin and options["max_tokens"] > 0:
        options["max_tokens"] += len(begin)
    chat = open_chat(model, tokenizer, args)
    texts = [turn_of(chat, name, text) for name, text in args.remember]
    for prompt in prompts:
        chat.new_turn(prompt)
    done = steps_done(chat, texts, prompts, NONE if args.read_only else chat.write)
    further = _further_options(args, draft)
    with nullcontext() if args.session is None else keeping_output_failures():
        _remember(chat, args, done)
        for prompt in prompts[max(done - len(texts), 0) :]:
            with reading_progress("Reading the prompt", args.verbose) as progress:
                responses = chat.stream(
                    prompt,
                    read_only=args.read_only,
                    prompt_progress_callback=progress,
                    logits_processors=[Beginning(begin)] if begin else None,
                    **options,
                    **further,
                )
                _print_reply(responses, args.verbose)
            _save(chat, args)
    return chat.memory


def _remember(chat: ChatSession, args: argparse.Namespace, done: int) -> None:
    """Write the texts of `--remember` into the memory, and save the chat after each.

    Args:
        chat: The chat.
        args: The options of the command.
        done: The number of steps that the same command has done before it was interrupted.
    """
    # Ctrl-C reaches the ranks of a command at different places of the text.
    keep_read = args.session is not None and world().is_alone
    for index, (name, text) in enumerate(args.remember):
        if index < done:
            if args.verbose:
                print(f"{name} is in {args.session} already")
            continue
        try:
            with reading_progress(f"Reading {name}", args.verbose) as progress:
                chat.remember(text, prefill_step_size=args.prefill_step_size, progress=progress, keep_read=keep_read)
        except KeyboardInterrupt:
            # The same command then goes on where this one ended.
            _save(chat, args)
            raise
        _save(chat, args)


def _save(chat: ChatSession, args: argparse.Namespace) -> None:
    if args.session is not None:
        chat.save(args.session, args.save_kv)


def _continue_text(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: list[str],
    args: argparse.Namespace,
    draft: nn.Module | None,
) -> dict[int, mx.array]:
    """Continue each prompt as plain text, all in one prompt cache; returns the memory after the last one."""
    cache = make_prompt_cache(model, args.max_kv_size)
    draft_cache = [] if draft is None else make_prompt_cache(draft)
    options, further = reply_options(tokenizer, args), _further_options(args, draft)
    options["sampler"] = same_tokens(model, options["sampler"])
    if draft is not None and options["max_tokens"] < 0:
        # For drafts, mlx-lm knows no value for "no limit".
        options["max_tokens"] = 2**31 - 1
    for ids in [_plain_ids(tokenizer, prompt) for prompt in prompts]:
        reading = read_only(model) if args.read_only else nullcontext()
        # mlx-lm does not tell of the prompt where it drafts, and a bar that is not ended takes what is printed.
        with reading, reading_progress("Reading the prompt", args.verbose and draft is None) as progress:
            responses = stream_generate(
                model,
                tokenizer,
                ids,
                prompt_cache=cache if draft is None else with_draft(model, cache, draft_cache),
                prompt_progress_callback=progress,
                **options,
                **further,
            )
            last = _print_reply(responses, args.verbose)
            if draft is not None and last is not None and not last.from_draft:
                # mlx-lm has not run the last token, as it does without a draft model.
                model(mx.array([[last.token]]), cache=cache)
    states = whole_states(model, cache[-1].cache)
    return {layer: state for layer, state in enumerate(states) if state.size}


def _plain_ids(tokenizer: TokenizerWrapper, prompt: str) -> list[int]:
    """The tokens of a prompt without a chat, as mlx-lm makes them of a text.

    Raises:
        ValueError: There are none.
    """
    ids = token_ids(tokenizer, prompt, tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token))
    if not ids:
        raise ValueError("the prompt has no tokens; expected some text")
    return ids


def _further_options(args: argparse.Namespace, draft: nn.Module | None) -> _FurtherOptions:
    if draft is not None:
        return {"draft_model": draft, "num_draft_tokens": args.num_draft_tokens or _DRAFT_TOKENS}
    if args.kv_bits is None:
        return {}
    return {
        "kv_bits": args.kv_bits,
        "kv_group_size": args.kv_group_size,
        "quantized_kv_start": args.quantized_kv_start,
    }


def _print_reply(responses: Iterable[GenerationResponse], verbose: bool) -> GenerationResponse | None:
    """Print a reply as it is generated, and mlx-lm's statistics after it; returns its last response."""
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
    return response


def _memory_line(states: dict[int, mx.array]) -> str:
    arrays = state_arrays(states)
    norms = [norm(state) for state in squares(arrays).values()]
    shape = "x".join(map(str, shape_held(arrays)))
    return f"{len(arrays)} layers of {shape}, {bytes_held(arrays):,} bytes, norm {min(norms):.3f} to {max(norms):.3f}"
