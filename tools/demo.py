"""Show the memory at work, without the Hub: `python -m tools.demo` (or `make demo`).

A small real model is told facts, each in a chat of its own. Then the text is dropped, and a question is answered from
the memory alone, with the adapter that comes with the project.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem import detach, load, make_prompt_cache, memory, read_only
from mlx_deltamem.attach import is_attached
from mlx_deltamem.cache import PromptCache
from mlx_deltamem.memory_view import memory_view
from mlx_deltamem.segments import Message
from tools import smollm2

ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2-135m-recall"
# None of them is a value that the adapter was trained on.
TOLD = (
    ("My cat is called Boris.", "What is my cat called?", "Boris"),
    ("My sister's name is Diana.", "What is my sister's name?", "Diana"),
    ("My favourite animal is the penguin.", "What is my favourite animal?", "penguin"),
    ("My favourite colour is blue.", "What is my favourite colour?", "blue"),
    ("My home town is Dublin.", "What is my home town?", "Dublin"),
    ("I play the violin.", "Which instrument do I play?", "violin"),
)
REPLY_TOKENS = 16
SHOWN_LAYERS = (17, 21, 25, 29)


def main() -> None:
    model, tokenizer = load(smollm2.build(), ADAPTER)
    console = Console(width=110)
    chats = [[said("user", text), said("assistant", "Got it.")] for text, _, _ in TOLD]
    remembered = [told_and_dropped(model, tokenizer, chat) for chat in chats]
    states = {layer: state for layer, state in memory(remembered[0]).items() if layer in SHOWN_LAYERS}
    print(
        f"Told: {TOLD[0][0]!r}. The text is dropped; what is left is the memory of {len(memory(remembered[0]))} layers,"
    )
    print(f"{remembered[0][-1].nbytes:,} bytes. Four of them:")
    console.print(memory_view(states, None, console))
    questions = [[said("user", question)] for _, question, _ in TOLD]
    columns = {"memory only": list(map(reply_with(model, tokenizer), questions, remembered))}
    detach(model)
    columns["frozen, without text"] = list(map(reply_with(model, tokenizer), questions))
    whole = [[*chat, *question] for chat, question in zip(chats, questions, strict=True)]
    columns["frozen, full text"] = list(map(reply_with(model, tokenizer), whole))
    show(console, columns)


def show(console: Console, columns: dict[str, list[str]]) -> None:
    """The replies side by side, and how many of each kind name what was told."""
    names = ("frozen, without text", "memory only", "frozen, full text")
    table = Table(title="Each fact in a chat of its own, then asked for", title_justify="left", show_lines=True)
    for heading in ("told", "asked", *names):
        table.add_column(heading)
    for row, (text, question, _) in enumerate(TOLD):
        table.add_row(text, question, *(columns[name][row] for name in names))
    console.print(table)
    for name in names:
        right = sum(value.lower() in answer.lower() for (*_, value), answer in zip(TOLD, columns[name], strict=True))
        print(f"Right, {name}: {right} of {len(TOLD)}.")


def told_and_dropped(model: nn.Module, tokenizer: TokenizerWrapper, chat: list[Message]) -> PromptCache:
    """A cache whose memory has read a chat, and which holds no text."""
    cache = make_prompt_cache(model)
    model(mx.array([tokenizer.apply_chat_template(chat)]), cache=cache)
    return memory_only(model, cache)


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def memory_only(model: nn.Module, cache: PromptCache) -> PromptCache:
    """A new cache with the memory of another and none of its text."""
    return [*make_prompt_cache(model)[:-1], copy.deepcopy(cache[-1])]


def reply_with(model: nn.Module, tokenizer: TokenizerWrapper) -> Callable[..., str]:
    """The function that gives the greedy reply to a chat; an attached model starts from a memory and only reads it."""

    def reply(messages: list[Message], remembered: PromptCache | None = None) -> str:
        cache = make_prompt_cache(model) if remembered is None else memory_only(model, remembered)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        with read_only(model) if is_attached(model) else nullcontext():
            parts = stream_generate(model, tokenizer, prompt, max_tokens=REPLY_TOKENS, prompt_cache=cache)
            return "".join(part.text for part in parts)

    return reply


if __name__ == "__main__":
    main()
