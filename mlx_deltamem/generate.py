"""Generate text with a model that has a memory: one prompt, or several as the turns of one chat."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_MIN_P,
    DEFAULT_PREFILL_STEP_SIZE,
    DEFAULT_QUANTIZED_KV_START,
    DEFAULT_TEMP,
    DEFAULT_TOP_K,
    DEFAULT_TOP_P,
    GenerationResponse,
    str2bool,
    stream_generate,
)
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.progress import Progress

from mlx_deltamem.attach import is_attached, read_only
from mlx_deltamem.cache import PromptCache, make_prompt_cache, memory, memory_bytes
from mlx_deltamem.command import command
from mlx_deltamem.files import new_file
from mlx_deltamem.loading import load

DEFAULT_MODEL = "mlx-community/Qwen3-4B-Instruct-2507-4bit"
DEFAULT_ADAPTER = "declare-lab/delta-mem_qwen3_4b-instruct"
NO_ADAPTER = "none"
# Stands for a reply when a chat template is asked for what comes after it.
_MARK = "\ufffc"


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.generate", description=__doc__)
    parser.add_argument("--model", help=f"Folder or Hub repo of the model (default: {DEFAULT_MODEL}).")
    parser.add_argument(
        "--adapter",
        help="Folder or Hub repo (USER/NAME[@REVISION]) of the δ-mem adapter, or `none` for the frozen backbone "
        f"(default: {DEFAULT_ADAPTER}, with the default model).",
    )
    parser.add_argument(
        "--prompt",
        "-p",
        action="append",
        required=True,
        help="The message; `-` reads it from standard input. Several are successive turns of one chat.",
    )
    parser.add_argument(
        "--session", type=Path, help="A .safetensors file: go on from it if it is there, and save the chat to it."
    )
    parser.add_argument("--read-only", action="store_true", help="Read the memory without writing it.")
    parser.add_argument("--system-prompt", help="System prompt, at the start of a chat.")
    parser.add_argument("--max-tokens", "-m", type=int, default=DEFAULT_MAX_TOKENS, help="Longest reply, in tokens.")
    parser.add_argument("--temp", type=float, default=DEFAULT_TEMP, help="Sampling temperature.")
    parser.add_argument("--top-p", type=float, default=DEFAULT_TOP_P, help="Sampling top-p.")
    parser.add_argument("--min-p", type=float, default=DEFAULT_MIN_P, help="Sampling min-p.")
    parser.add_argument("--top-k", type=int, default=DEFAULT_TOP_K, help="Sampling top-k.")
    parser.add_argument("--seed", type=int, help="Seed of the sampling.")
    parser.add_argument("--max-kv-size", type=int, help="Keep this many tokens of keys and values.")
    parser.add_argument("--kv-bits", type=int, help="Quantise keys and values to this many bits.")
    parser.add_argument("--kv-group-size", type=int, default=64, help="Group size of that quantisation.")
    parser.add_argument(
        "--quantized-kv-start", type=int, default=DEFAULT_QUANTIZED_KV_START, help="... from this token."
    )
    parser.add_argument(
        "--prefill-step-size", type=int, default=DEFAULT_PREFILL_STEP_SIZE, help="Prompt tokens to process at a time."
    )
    parser.add_argument("--ignore-chat-template", action="store_true", help="Use the prompt as it is.")
    parser.add_argument("--chat-template-config", type=json.loads, default={}, help="More for the template, in JSON.")
    parser.add_argument("--extra-eos-token", nargs="+", default=(), help="Tokens that stop generation as well.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    parser.add_argument("--verbose", type=str2bool, default=True, help="False prints the replies and nothing else.")
    return parser


@dataclass
class Chat:
    """A chat and what of it has gone through the model.

    Attributes:
        cache: Keys, values and memory.
        messages: In the form of chat templates.
        tokens: The ids that the cache stands for.
    """

    cache: PromptCache
    messages: list[dict[str, str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    model_name, adapter_name = _names(args.model, args.adapter)
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in args.prompt]
    if args.session is not None and args.session.suffix != ".safetensors":
        raise ValueError(f"--session is {args.session}; expected a name that ends in .safetensors")
    if args.seed is not None:
        mx.random.seed(args.seed)
    adapter = None if adapter_name == NO_ADAPTER else adapter_name
    model, tokenizer = load(model_name, adapter, trust_remote_code=args.trust_remote_code)
    for token in args.extra_eos_token:
        tokenizer.add_eos_token(token)
    origin = {"model": model_name, "adapter": adapter_name}
    if args.session is not None and args.session.exists():
        chat = load_chat(args.session, origin)
    else:
        chat = Chat(make_prompt_cache(model, args.max_kv_size))
        if args.system_prompt is not None:
            chat.messages.append({"role": "system", "content": args.system_prompt})
    with read_only(model) if args.read_only and is_attached(model) else nullcontext():
        for prompt in prompts:
            _run_turn(model, tokenizer, chat, prompt, args)
    if args.session is not None:
        save_chat(args.session, chat, origin)
    if args.verbose and is_attached(model):
        print(f"Memory: {_memory_line(chat.cache)}")


def _names(model: str | None, adapter: str | None) -> tuple[str, str]:
    if model is None:
        return DEFAULT_MODEL, adapter or DEFAULT_ADAPTER
    if adapter is None:
        raise ValueError(f"--model {model} needs an --adapter made for it, or `--adapter {NO_ADAPTER}`")
    return model, adapter


def _run_turn(model: nn.Module, tokenizer: TokenizerWrapper, chat: Chat, prompt: str, args: argparse.Namespace) -> None:
    """Answer one prompt, on the screen and in `chat`."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; expected some text")
    chat.messages.append({"role": "user", "content": prompt})
    ids = _prompt_ids(tokenizer, chat, prompt, args)
    if args.verbose:
        print("=" * 10)
    reply, response = "", None
    with _prefill_progress(args.verbose) as progress:
        for response in _stream(model, tokenizer, chat, ids, args, progress):
            reply += response.text
            chat.tokens.append(response.token)
            print(response.text, end="", flush=True)
    print()
    chat.messages.append({"role": "assistant", "content": reply})
    if args.verbose:
        print("=" * 10)
        print(f"Prompt: {response.prompt_tokens} tokens, {response.prompt_tps:.3f} tokens-per-sec")
        print(f"Generation: {response.generation_tokens} tokens, {response.generation_tps:.3f} tokens-per-sec")
        print(f"Peak memory: {response.peak_memory:.3f} GB")


def _prompt_ids(tokenizer: TokenizerWrapper, chat: Chat, prompt: str, args: argparse.Namespace) -> list[int]:
    """The ids to run now: those of the new turn, the reply before it being in the cache as it was generated."""
    if args.ignore_chat_template or not tokenizer.has_chat_template:
        return tokenizer.encode(prompt, add_special_tokens=not chat.tokens)
    options = {"add_generation_prompt": True, "tokenize": False, **args.chat_template_config}
    if not chat.tokens:
        return tokenizer.encode(tokenizer.apply_chat_template(chat.messages, **options), add_special_tokens=False)
    *earlier, reply, user = chat.messages
    marked = tokenizer.apply_chat_template([*earlier, reply | {"content": _MARK}, user], **options)
    _, _, new_turn = marked.partition(_MARK)
    ids = tokenizer.encode(new_turn, add_special_tokens=False)
    # A reply that ended by itself has its end-of-turn token in the cache.
    return ids[1:] if ids[0] == chat.tokens[-1] and ids[0] in tokenizer.eos_token_ids else ids


def _stream(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    chat: Chat,
    ids: list[int],
    args: argparse.Namespace,
    progress: Callable[[int, int], None],
) -> Iterator[GenerationResponse]:
    chat.tokens += ids
    # mlx-lm runs every token that it gives through the model, the last one too.
    return stream_generate(
        model,
        tokenizer,
        ids,
        max_tokens=args.max_tokens,
        sampler=make_sampler(args.temp, args.top_p, args.min_p, top_k=args.top_k),
        prompt_cache=chat.cache,
        prefill_step_size=args.prefill_step_size,
        kv_bits=args.kv_bits,
        kv_group_size=args.kv_group_size,
        quantized_kv_start=args.quantized_kv_start,
        prompt_progress_callback=progress,
    )


@contextmanager
def _prefill_progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar while a long prompt is read, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("Reading the prompt")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                # The reply is about to be written where the bar is.
                bar.stop()

        yield update


def _memory_line(cache: PromptCache) -> str:
    states = memory(cache)
    norms = [mx.linalg.norm(state).item() for state in states.values()]
    shape = next(iter(states.values())).shape[1:]
    return (
        f"{len(states)} layers of {'x'.join(map(str, shape))}, {memory_bytes(cache):,} bytes, "
        f"norm {min(norms):.3f} to {max(norms):.3f}"
    )


def save_chat(path: Path, chat: Chat, origin: dict[str, str]) -> None:
    """Write a chat to an mlx-lm prompt cache file, which only its owner may read.

    Args:
        path: The file to make or replace.
        chat: The chat.
        origin: The names of the model and the adapter.

    Raises:
        OSError: The file cannot be written; one that was there is still there.
    """
    session = {**origin, "messages": chat.messages, "tokens": chat.tokens}
    with new_file(path, mode=0o600) as file:
        save_prompt_cache(str(file), chat.cache, {"session": json.dumps(session)})


def load_chat(path: Path, origin: dict[str, str]) -> Chat:
    """Read a chat that `save_chat` wrote.

    Raises:
        ValueError: The file is damaged, or was made with another model or adapter.
    """
    try:
        cache, metadata = load_prompt_cache(str(path), return_metadata=True)
        session = json.loads(metadata["session"])
        chat = Chat(cache, session.pop("messages"), session.pop("tokens"))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no session ({type(error).__name__}: {error}); expected one saved here") from None
    if session != origin:
        raise ValueError(f"{path} was made with {session}; expected {origin}")
    return chat


if __name__ == "__main__":
    main()
