"""The model and the chat that the options of a command name."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.adapters.fingerprint import note_own_ends
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.adapters.spread_loading import load_spread
from mlx_deltamem.cli.options import model_and_adapter
from mlx_deltamem.core.spread import world_of
from mlx_deltamem.options.rule import shown
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.session import TAKEN_NAMES, ChatSession
from mlx_deltamem.sessions.stored.file import check_place
from mlx_deltamem.sessions.template.options import DEFAULTS, check_names
from mlx_deltamem.sessions.turns.history import FULL
from mlx_deltamem.sessions.turns.writing import ALL

# No vocabulary has numbers of so many digits.
_DIGITS = 10


class ReplyOptions(TypedDict):
    """Keyword arguments of `ChatSession.stream` and `mlx_lm.stream_generate`, as there."""

    max_tokens: int
    prefill_step_size: int
    sampler: Callable[[mx.array], mx.array]


def load_model(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """Load the model and attach the adapter that the options of `add_model_options` name.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: They do not fit, or a model was named without an adapter.
    """
    return load(*model_and_adapter(args), trust_remote_code=args.trust_remote_code)


def load_spread_model(args: argparse.Namespace) -> tuple[nn.Module, TokenizerWrapper]:
    """As `load_model`; under mlx.launch, spread the model over the ranks, as `--pipeline` says.

    A chat template in `--chat-template-config` becomes the tokenizer's, and is taken out of the option: a session file
    may not bring one. The tokens of `--extra-eos-token` end replies too.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: They do not fit, the model cannot be split so, there is `--pipeline` and one rank only, or a token
            that ends a reply is not one of the model.
    """
    model, tokenizer = load_on_ranks(*model_and_adapter(args), getattr(args, "pipeline", False), args.trust_remote_code)
    options: dict[str, object] = getattr(args, "chat_template_config", {})
    given = options.get("chat_template")
    if isinstance(given, str):
        own = tokenizer.chat_template
        # A tokenizer may have several, with names.
        tokenizer.chat_template = own.get(given, given) if isinstance(own, dict) else given
        args.chat_template_config = {name: value for name, value in options.items() if name != "chat_template"}
    for token in getattr(args, "extra_eos_token", ()):
        _add_end(tokenizer, token)
    return model, tokenizer


def load_on_ranks(
    model: str, adapter: str | None, is_pipeline: bool, trust_remote_code: bool
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a model; under mlx.launch, spread it over the ranks. With `adapter` None, none is attached.

    Raises:
        FileNotFoundError, ValueError: As from `load_spread_model`.
    """
    ranks = world()
    if not ranks.is_alone:
        return load_spread(model, adapter, ranks, is_pipeline, trust_remote_code)
    if is_pipeline:
        raise ValueError("--pipeline is for several machines; start the command with mlx.launch, or leave it out")
    return load(model, adapter, trust_remote_code=trust_remote_code)


def open_chat(model: nn.Module, tokenizer: TokenizerWrapper, args: argparse.Namespace) -> ChatSession:
    """Open the chat of the options of `add_chat_options`: the chat in the session file if it exists, else a new one.

    Raises:
        ValueError: The file holds no chat of this model and adapter, or the chat has another system prompt or other
            options of the chat template.
    """
    ranks = world_of(model)
    if args.session is not None:
        ranks.first(lambda: check_place(args.session))
    check_names(args.chat_template_config, TAKEN_NAMES)
    if args.session is None or not ranks.first(args.session.exists):
        history, write = FULL if args.history is None else args.history, args.write or ALL
        return ChatSession(model, tokenizer, args.system_prompt, history, write, **args.chat_template_config)
    chat = ChatSession.load(model, tokenizer, args.session)
    if args.system_prompt is not None and args.system_prompt != chat.system:
        raise ValueError(
            f"{args.session} has --system-prompt {chat.system!r}, not {args.system_prompt!r}; leave the option out"
        )
    _check_template_config(args, chat.state.template.options)
    if args.history is not None:
        chat.history = args.history
    if args.write is not None:
        chat.write = args.write
    return chat


def _check_template_config(args: argparse.Namespace, own: Mapping[str, object]) -> None:
    """Check that `--chat-template-config`, if it is given, names the options that the chat of the session has.

    Raises:
        ValueError: It names others.
    """
    given = {**DEFAULTS, **args.chat_template_config}
    if given.get("tools") is None:
        # A chat has no such option then.
        given.pop("tools", None)
    if args.chat_template_config and given != own:
        raise ValueError(
            f"{args.session} has --chat-template-config {json.dumps(own, ensure_ascii=False)}, not "
            f"{json.dumps(args.chat_template_config, ensure_ascii=False)}; leave the option out"
        )


def reply_options(tokenizer: TokenizerWrapper, args: argparse.Namespace) -> ReplyOptions:
    """The options of `add_chat_options` that decide how replies are generated.

    The seed is set.
    """
    if args.seed is not None:
        mx.random.seed(args.seed)
    return {
        "max_tokens": args.max_tokens,
        "prefill_step_size": args.prefill_step_size,
        "sampler": make_sampler(
            args.temp,
            args.top_p,
            args.min_p,
            args.min_tokens_to_keep,
            args.top_k,
            args.xtc_probability,
            args.xtc_threshold,
            # As in mlx_lm.generate: XTC never leaves out a new line or the end of a reply.
            [*tokenizer.encode("\n", add_special_tokens=False), *tokenizer.eos_token_ids],
        ),
    }


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
    note_own_ends(tokenizer)
    tokenizer.add_eos_token(token)
