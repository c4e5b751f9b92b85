"""The options that several commands share. Options of mlx-lm keep mlx-lm's names."""

import argparse
import json
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
from mlx_deltamem.adapters.spread_loading import load_spread
from mlx_deltamem.core.spread import world_of
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.files.jsonl import parsed_json
from mlx_deltamem.options.rule import COUNT, PLACE, POSITIVE, REPLY_LENGTH, SEED, SHARE, STEP, TEMPERATURE, shown
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.history import FULL, NONE, History
from mlx_deltamem.sessions.session import TAKEN_NAMES, ChatSession
from mlx_deltamem.sessions.stored.file import check_place
from mlx_deltamem.sessions.template_options import check_names
from mlx_deltamem.sessions.writing import ALL, MEANINGS, WRITES

_TRUE, _FALSE = ("true", "t"), ("false", "f")
# No vocabulary has numbers of so many digits.
_DIGITS = 10
DEFAULT_MODEL = "mlx-community/Qwen3-4B-Instruct-2507-4bit"


class ReplyOptions(TypedDict):
    """Keyword arguments of `ChatSession.stream` and `mlx_lm.stream_generate`, as there."""

    max_tokens: int
    prefill_step_size: int
    sampler: Callable[[mx.array], mx.array]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--adapter` and `--trust-remote-code`."""
    parser.add_argument("--model", type=PLACE, help=f"Folder or Hub repo of the model (default: {DEFAULT_MODEL}).")
    parser.add_argument(
        "--adapter",
        type=PLACE,
        help="Folder or Hub repo (USER/NAME[@REVISION]) of the δ-mem adapter "
        f"(default: {REFERENCE_ADAPTER}, with the default model).",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")


def add_pipeline_option(parser: argparse.ArgumentParser) -> None:
    """Add `--pipeline`, for commands that spread a model over several ranks."""
    parser.add_argument(
        "--pipeline",
        action="store_true",
        help="Under mlx.launch: give each machine some of the layers, in place of a part of each layer.",
    )


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
        type=history_option,
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
        "--max-tokens", "-m", type=REPLY_LENGTH, default=DEFAULT_MAX_TOKENS, help="Longest reply, in tokens."
    )
    parser.add_argument("--temp", type=TEMPERATURE, default=DEFAULT_TEMP, help="Sampling temperature.")
    parser.add_argument("--top-p", type=SHARE, default=DEFAULT_TOP_P, help="Sampling top-p.")
    parser.add_argument("--min-p", type=SHARE, default=DEFAULT_MIN_P, help="Sampling min-p.")
    parser.add_argument("--top-k", type=COUNT, default=DEFAULT_TOP_K, help="Sampling top-k.")
    parser.add_argument("--seed", type=SEED, help="Seed of the sampling.")
    parser.add_argument(
        "--prefill-step-size",
        type=STEP,
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
    return load(*_names(args), trust_remote_code=args.trust_remote_code)


def load_spread_model(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """As `load_model`; under mlx.launch, spread the model over the ranks, as `--pipeline` says.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: They do not fit, the model cannot be split so, or there is `--pipeline` and one rank only.
    """
    ranks = world()
    if ranks.is_alone:
        if getattr(args, "pipeline", False):
            raise ValueError("--pipeline is for several machines; start the command with mlx.launch, or leave it out")
        return load_model(args)
    return load_spread(*_names(args), ranks, getattr(args, "pipeline", False), args.trust_remote_code)


def _names(args: argparse.Namespace) -> tuple[str, str]:
    """The names of the model and the adapter.

    Raises:
        ValueError: A model was named without an adapter.
    """
    model, adapter = args.model or DEFAULT_MODEL, args.adapter
    if adapter is None:
        if args.model is not None:
            raise ValueError(f"--model {args.model} needs an --adapter made for it (without a memory: mlx_lm.generate)")
        adapter = REFERENCE_ADAPTER
    return model, adapter


def open_chat(model: nn.Module, tokenizer: TokenizerWrapper, args: argparse.Namespace) -> ChatSession:
    """Open the chat of the options of `add_chat_options`: the chat in the session file if it exists, else a new one.

    Raises:
        ValueError: The file holds no chat of this model and adapter, the chat has another system prompt, or a token
            that ends a reply is not one of the model.
    """
    ranks = world_of(model)
    if args.session is not None:
        ranks.first(lambda: check_place(args.session))
    for token in args.extra_eos_token:
        _add_end(tokenizer, token)
    if args.seed is not None:
        mx.random.seed(args.seed)
    check_names(args.chat_template_config, TAKEN_NAMES)
    if args.session is None or not ranks.first(args.session.exists):
        history, write = FULL if args.history is None else args.history, args.write or ALL
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


def true_or_false(text: str) -> bool:
    """An argparse type: what mlx-lm reads as true or false, but no other text."""
    if text.lower() not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"is {shown(text)}; expected True or False")
    return text.lower() in _TRUE


def history_option(text: str) -> History:
    """An argparse type: the history of a chat."""
    try:
        return text if text in (FULL, NONE) else int(str(POSITIVE(text)))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"is {shown(text)}; expected {FULL!r}, {NONE!r} or a number of tokens, {POSITIVE.expected}"
        ) from None


def _add_end(tokenizer: TokenizerWrapper, token: str) -> None:
    """Let a token end replies. It is given as its text or its number.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    # mlx-lm reads a number first, and takes any; for other texts its tokenizer may give the unknown token.
    if token not in vocabulary and not (token.isascii() and token.isdigit() and len(token) < _DIGITS):
        raise ValueError(f"--extra-eos-token is {shown(token)}; expected a token of the model, or its number")
    if token not in vocabulary and int(token) not in vocabulary.values():
        raise ValueError(f"--extra-eos-token is {token}; expected a number from 0 to {max(vocabulary.values()):,}")
    tokenizer.add_eos_token(token)


def _json_object(text: str) -> dict[str, object]:
    """An argparse type: a JSON object."""
    value, problem = parsed_json(text.encode(errors="surrogatepass"))
    if problem or not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"is {problem or shown(text)}; expected a JSON object like {{}}")
    try:
        # As a session file stores it.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {shown(text)}; expected finite numbers and whole characters") from None
    return dict(value)
