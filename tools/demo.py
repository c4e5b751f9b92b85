"""Show the memory at work, without the Hub: `python -m tools.demo` (or `make demo`).

A small real model is told a few facts. Then the text is dropped, and questions are answered from the memory alone, with
the adapter that comes with the project.
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

from mlx_deltamem import detach, generate, load, make_prompt_cache, memory, read_only
from mlx_deltamem.attach import is_attached
from mlx_deltamem.cache import PromptCache
from mlx_deltamem.memory_view import memory_view
from mlx_deltamem.segments import Message
from tools import smollm2

ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2-135m-recall"
# None of the values was in the adapter's training data.
TOLD = (
    ("My cat is called Boris.", "What is my cat called?", "Boris"),
    ("I grew up in Lima.", "Where did I grow up?", "Lima"),
    ("My favourite animal is the penguin.", "What is my favourite animal?", "penguin"),
)
REPLY_TOKENS = 16


def main() -> None:
    backbone = smollm2.build()
    run_generate(
        *("--model", shown(backbone), "--adapter", shown(ADAPTER)),
        *("--prompt", TOLD[0][0], "--prompt", TOLD[0][1], "--history", "none", "--max-tokens", str(REPLY_TOKENS)),
    )
    model, tokenizer = load(backbone, ADAPTER)
    show_what_is_recalled(model, tokenizer)


def run_generate(*arguments: str) -> None:
    """Run the command `mlx_deltamem.generate`, in this process for the sake of OpenBLAS, and show how it is typed."""
    print("$ mlx_deltamem.generate", shlex.join(arguments))
    sys.argv = ["mlx_deltamem.generate", *arguments]
    generate.main()


def show_what_is_recalled(model: nn.Module, tokenizer: TokenizerWrapper) -> None:
    """Tell all facts in one chat, drop its text, and ask for each of them."""
    console = Console(width=110)
    chat = [message for text, _, _ in TOLD for message in (said("user", text), said("assistant", "Got it."))]
    told = make_prompt_cache(model)
    model(mx.array([tokenizer.apply_chat_template(chat)]), cache=told)
    remembered = memory_only(model, told)
    print(f"\nTold in {len(TOLD)} turns: {' '.join(text for text, _, _ in TOLD)}")
    print(f"The text is dropped. What is left is the memory, {remembered[-1].nbytes:,} bytes:")
    console.print(memory_view(memory(remembered), None, console))
    questions = [[said("user", question)] for _, question, _ in TOLD]
    from_memory = [reply(model, tokenizer, question, remembered) for question in questions]
    detach(model)
    without = [reply(model, tokenizer, question) for question in questions]
    with_text = [reply(model, tokenizer, [*chat, *question]) for question in questions]
    table = Table(title="Asked, with none of the text above unless the column says so", title_justify="left")
    for heading in ("question", "frozen model", "frozen model, full text", "memory only"):
        table.add_column(heading)
    for (_, question, _), *replies in zip(TOLD, without, with_text, from_memory, strict=True):
        table.add_row(question, *replies)
    console.print(table)
    for name, replies in (("full text", with_text), ("memory only", from_memory)):
        right = sum(value.lower() in answer.lower() for (_, _, value), answer in zip(TOLD, replies, strict=True))
        print(f"Right with the {name}: {right} of {len(TOLD)}.")


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def memory_only(model: nn.Module, cache: PromptCache) -> PromptCache:
    """A new cache with the memory of another and none of its text."""
    return [*make_prompt_cache(model)[:-1], copy.deepcopy(cache[-1])]


def reply(
    model: nn.Module, tokenizer: TokenizerWrapper, messages: list[Message], remembered: PromptCache | None = None
) -> str:
    """The greedy reply to a chat; an attached model starts from what it remembers, and only reads it."""
    cache = make_prompt_cache(model) if remembered is None else memory_only(model, remembered)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    with read_only(model) if is_attached(model) else nullcontext():
        parts = stream_generate(model, tokenizer, prompt, max_tokens=REPLY_TOKENS, prompt_cache=cache)
        return "".join(part.text for part in parts)


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main()
