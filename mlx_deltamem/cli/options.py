"""The options that several commands share. Options of mlx-lm keep mlx-lm's names."""

import argparse
import json
import math
from collections.abc import Callable
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_MIN_P,
    DEFAULT_PREFILL_STEP_SIZE,
    DEFAULT_TEMP,
    DEFAULT_TOP_K,
    DEFAULT_TOP_P,
)
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.sessions.history import FULL
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.stored.file import check_place
from mlx_deltamem.sessions.writing import ALL, MEANINGS, WRITES

DEFAULT_MODEL = "mlx-community/Qwen3-4B-Instruct-2507-4bit"


class ReplyOptions(TypedDict):
    """Keyword arguments of `ChatSession.stream` and `mlx_lm.stream_generate`, as there."""

    max_tokens: int
    prefill_step_size: int
    sampler: Callable[[mx.array], mx.array]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--adapter` and `--trust-remote-code`."""
    parser.add_argument("--model", help=f"Folder or Hub repo of the model (default: {DEFAULT_MODEL}).")
    parser.add_argument(
        "--adapter",
        help="Folder or Hub repo (USER/NAME[@REVISION]) of the δ-mem adapter "
        f"(default: {REFERENCE_ADAPTER}, with the default model).",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a chat, and of how its replies are generated."""
    parser.add_argument(
        "--session",
        type=user_path,
        help="A .safetensors file for the chat. The chat in it goes on if the file exists; the chat is saved to it.",
    )
    parser.add_argument(
        "--save-kv", action="store_true", help="Save keys and values too, so that the chat goes on without delay."
    )
    parser.add_argument(
        "--history",
        help="The part of earlier turns that the model sees beside its memory: full, none, or a number of tokens "
        f"(default: as in the session, else {FULL}). Without full, each turn reads system prompt and tokens anew.",
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
    parser.add_argument(
        "--write",
        choices=WRITES,
        help=f"The part of a turn to write into the memory. {meanings} (default: as in the session, else {ALL}).",
    )
    parser.add_argument("--system-prompt", "--system", help="System prompt of a new chat.")
    parser.add_argument(
        "--max-tokens", "-m", type=_reply_length, default=DEFAULT_MAX_TOKENS, help="Longest reply, in tokens."
    )
    parser.add_argument("--temp", type=number_from(0.0), default=DEFAULT_TEMP, help="Sampling temperature.")
    parser.add_argument("--top-p", type=number_from(0.0, 1.0), default=DEFAULT_TOP_P, help="Sampling top-p.")
    parser.add_argument("--min-p", type=number_from(0.0, 1.0), default=DEFAULT_MIN_P, help="Sampling min-p.")
    parser.add_argument("--top-k", type=count_from(0), default=DEFAULT_TOP_K, help="Sampling top-k.")
    parser.add_argument("--seed", type=count_from(0), help="Seed of the sampling.")
    parser.add_argument(
        "--prefill-step-size",
        type=count_from(1),
        default=DEFAULT_PREFILL_STEP_SIZE,
        help="Prompt tokens to process at a time.",
    )
    parser.add_argument(
        "--chat-template-config", type=_json_object, default={}, help="Options of the chat template, a JSON object."
    )
    parser.add_argument("--extra-eos-token", nargs="+", default=(), help="More tokens that end a reply.")


def load_model(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """Load the model and attach the adapter that the options of `add_model_options` name.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: They do not fit, or a model was named without an adapter.
    """
    model, adapter = args.model or DEFAULT_MODEL, args.adapter
    if adapter is None:
        if args.model is not None:
            raise ValueError(f"--model {args.model} needs an --adapter made for it (without a memory: mlx_lm.generate)")
        adapter = REFERENCE_ADAPTER
    return load(model, adapter, trust_remote_code=args.trust_remote_code)


def open_chat(model: nn.Module, tokenizer: TokenizerWrapper, args: argparse.Namespace) -> ChatSession:
    """Open the chat of the options of `add_chat_options`: the chat in the session file if it exists, else a new one.

    Raises:
        ValueError: The file holds no chat of this model and adapter, or the chat has another system prompt.
    """
    if args.session is not None:
        check_place(args.session)
    for token in args.extra_eos_token:
        tokenizer.add_eos_token(token)
    if args.seed is not None:
        mx.random.seed(args.seed)
    if args.session is None or not args.session.exists():
        history, write = args.history or FULL, args.write or ALL
        return ChatSession(model, tokenizer, args.system_prompt, history, write, **args.chat_template_config)
    chat = ChatSession.load(model, tokenizer, args.session)
    if args.system_prompt is not None and args.system_prompt != chat.system:
        raise ValueError(
            f"{args.session} has --system-prompt {chat.system!r}, not {args.system_prompt!r}; leave the option out"
        )
    if args.history is not None:
        chat.history = args.history
    if args.write is not None:
        chat.write = args.write
    return chat


def reply_options(args: argparse.Namespace) -> ReplyOptions:
    """The options of `add_chat_options` that decide how replies are generated."""
    return {
        "max_tokens": args.max_tokens,
        "prefill_step_size": args.prefill_step_size,
        "sampler": make_sampler(args.temp, args.top_p, args.min_p, top_k=args.top_k),
    }


def count_from(least: int) -> Callable[[str], int]:
    """An argparse type: an integer >= `least`."""

    def parse(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; expected {least} or more")
        return int(text)

    return parse


def number_from(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number from `least` to `most`."""

    def parse(text: str) -> float:
        if not least <= float(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected {least:g} to {most:g}")
        return float(text)

    return parse


def _reply_length(text: str) -> int:
    """An argparse type: a number of tokens, or -1 for no limit."""
    if int(text) < 1 and int(text) != -1:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected 1 or more, or -1 for no limit")
    return int(text)


def _json_object(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object; expected one, as {{}}")
    return value
