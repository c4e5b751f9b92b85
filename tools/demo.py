"""Show the memory at work, without the Hub: `python -m tools.demo` (or `make demo`).

The adapter is seeded and untrained, so what it carries from one turn to the next is a trace and no knowledge. The demo
measures that trace.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import copy
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem import (
    DeltaMemConfig,
    attach,
    current_adapter,
    detach,
    load,
    make_prompt_cache,
    memory,
    read_only,
    save_adapter,
)
from mlx_deltamem import generate
from mlx_deltamem.attach import is_attached
from mlx_deltamem.cache import PromptCache
from tools import smollm2

SEED = 0
# Large, so that memories of untrained weights can be seen in the reply.
CONFIG = DeltaMemConfig(
    delta_heads=("q", "o"), output_init="base_slice_fixed", online_gain=40.0, beta_bias_init=-4.0, rank=8
)
TOLD = ("My name is Anna and I keep bees in Norway.", "My name is Omar and I repair old clocks in Cairo.")
ASKED = "What is my name, and what do I do?"
REPLY_TOKENS = 24


def main() -> None:
    backbone = smollm2.build()
    model, tokenizer = load(backbone)
    folder = backbone.parent / "untrained-adapter"
    frozen = reply(model, tokenizer, make_prompt_cache(model))
    mx.random.seed(SEED)
    attach(model, CONFIG)
    save_adapter(current_adapter(model), folder)
    run_generate("--model", shown(backbone), "--adapter", shown(folder), "--prompt", "What is the capital of France?")
    show_what_is_carried(model, tokenizer, frozen)


def run_generate(*arguments: str) -> None:
    """Run the command `mlx_deltamem.generate`, in this process for the sake of OpenBLAS, and show how it is typed."""
    print("$ mlx_deltamem.generate", shlex.join(arguments))
    sys.argv = ["mlx_deltamem.generate", *arguments]
    generate.main()


def show_what_is_carried(model: nn.Module, tokenizer: TokenizerWrapper, frozen: str) -> None:
    """Tell two things in two chats, drop the text, ask the same question in both, reading the memory only."""
    nothing = make_prompt_cache(model)
    caches = {"(nothing)": nothing} | {text: told_and_dropped(model, tokenizer, text) for text in TOLD}
    log_probabilities = {text: next_token(model, tokenizer, cache) for text, cache in caches.items()}
    replies = {text: reply(model, tokenizer, cache) for text, cache in caches.items()}
    table = Table(title=f"Turn 2, the text of turn 1 dropped: {ASKED!r}", title_justify="left")
    for heading in ("told in turn 1", "norm of the memory", "shift of the next token", "reply"):
        table.add_column(heading)
    for text, cache in caches.items():
        norm = mx.sqrt(sum((state**2).sum() for state in memory(cache).values())).item()
        shift = divergence(log_probabilities[text], log_probabilities["(nothing)"])
        table.add_row(text, f"{norm:.3f}", f"{shift:.4f} nats", replies[text])
    Console(width=110).print(table)
    apart = divergence(*(log_probabilities[text] for text in TOLD))
    print(f"The two memories are {apart:.4f} nats apart in the next token; each is {nothing[-1].nbytes:,} bytes.")
    print(f"An empty memory gives the frozen model's reply: {yes(replies['(nothing)'] == frozen)}.")
    detach(model)
    print(f"Detached, the model answers as before: {yes(reply(model, tokenizer, make_prompt_cache(model)) == frozen)}.")
    print("This adapter is untrained: what was told leaves a trace, and cannot be recalled.")


def yes(fact: bool) -> str:
    return "yes" if fact else "NO"


def ids(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)


def told_and_dropped(model: nn.Module, tokenizer: TokenizerWrapper, text: str) -> PromptCache:
    """A cache whose memory has read `text`, and which holds no text."""
    cache = make_prompt_cache(model)
    model(mx.array([ids(tokenizer, text)]), cache=cache)
    return memory_only(model, cache)


def memory_only(model: nn.Module, cache: PromptCache) -> PromptCache:
    """A new cache with the memory of another and none of its text."""
    return [*make_prompt_cache(model)[:-1], copy.deepcopy(cache[-1])]


def next_token(model: nn.Module, tokenizer: TokenizerWrapper, cache: PromptCache) -> mx.array:
    """Log-probabilities of the first token of the reply to `ASKED`."""
    with read_only(model):
        logits = model(mx.array([ids(tokenizer, ASKED)]), cache=memory_only(model, cache))[0, -1]
    return logits - mx.logsumexp(logits)


def reply(model: nn.Module, tokenizer: TokenizerWrapper, cache: PromptCache) -> str:
    """The greedy reply to `ASKED`; an attached model only reads the memory in `cache`."""
    attached = is_attached(model)
    options = {"max_tokens": REPLY_TOKENS, "prompt_cache": memory_only(model, cache) if attached else cache}
    with read_only(model) if attached else nullcontext():
        return "".join(part.text for part in stream_generate(model, tokenizer, ids(tokenizer, ASKED), **options))


def divergence(p: mx.array, q: mx.array) -> float:
    """KL(p || q) in nats."""
    return (mx.exp(p) * (p - q)).sum().item()


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main()
