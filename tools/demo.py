"""Show the memory at work, without the Hub: `python -m tools.demo` (or `make demo`).

A chat tells a small real model a fact. The text of the turn is dropped, as `mlx_deltamem.chat --history none` drops it.
Then the chat asks for the fact twice: with the memory after that turn, and with an empty memory. The adapter is the one
that comes with the project.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem import ChatSession, load
from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.sessions.comparison import WITH, WITHOUT, compare
from tools import smollm2

ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2-135m-recall"
# Statement, question and answer. The adapter was not trained on any of these answers.
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
FULL_TEXT = "frozen model, text in view"


def main() -> None:
    model, tokenizer = load(smollm2.build(), ADAPTER)
    console = Console(width=110)
    table = Table(
        title="One chat each; the text of a turn is dropped when it ends", title_justify="left", show_lines=True
    )
    columns = (WITH, WITHOUT, FULL_TEXT)
    for heading in ("you", "the model", "you, next", *columns):
        table.add_column(heading)
    right = dict.fromkeys(columns, 0)
    for text, question, value in TOLD:
        chat = ChatSession(model, tokenizer, history="none")
        reply = chat.send(text, REPLY_TOKENS)
        if not table.rows:
            show_memory(console, chat, text)
        replies = compare(chat, question, max_tokens=REPLY_TOKENS)
        replies[FULL_TEXT] = with_text(model, tokenizer, text, question)
        table.add_row(text, reply.strip(), question, *(replies[name].strip() for name in columns))
        for name in columns:
            right[name] += value.lower() in replies[name].lower()
    console.print(table)
    for name in columns:
        print(f"Right, {name}: {right[name]} of {len(TOLD)}.")


def show_memory(console: Console, chat: ChatSession, text: str) -> None:
    """Draw some layers of a chat's memory."""
    memory = chat.memory
    size = sum(state.nbytes for state in memory.values())
    print(f"You: {text!r}. The text is dropped. The memory of {len(memory)} layers stays: {size:,} bytes.")
    print(f"{len(SHOWN_LAYERS)} of the layers:")
    console.print(memory_view({layer: memory[layer] for layer in SHOWN_LAYERS}, None, console))


def with_text(model: nn.Module, tokenizer: TokenizerWrapper, text: str, question: str) -> str:
    """Return the reply of the frozen model, which sees the text and has no memory."""
    chat = ChatSession(model, tokenizer, history="full", write="none")
    chat.send(text, REPLY_TOKENS)
    return chat.send(question, REPLY_TOKENS)


if __name__ == "__main__":
    main()
