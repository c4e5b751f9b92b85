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

ADAPTER = Path(__file__).parents[1] / "adapters" / "smollm2-135m-speech"
# Statement, question and answer. These eight were written once, before the adapter was tried with them. None was taken
# out or changed after it. Waffles, Lisbon, 5083 and Henrike are not among the values of its training.
TOLD = (
    ("We finally got a dog last week, and the kids named him Waffles.", "What's our dog called?", "Waffles"),
    ("My sister is flying in from Lisbon on Saturday.", "Where is my sister flying in from?", "Lisbon"),
    ("The plumber said he'd come round at 7:45 on Monday.", "What time is the plumber coming?", "7:45"),
    ("Before I forget: the code for the gate is 5083.", "What's the code for the gate?", "5083"),
    ("I left my umbrella at the barber's again.", "Where did I leave my umbrella?", "barber"),
    ("I quit the office, I work as a baker now.", "What do I do for a living?", "baker"),
    ("My daughter is allergic to walnuts, so no cake for her.", "What is my daughter allergic to?", "walnut"),
    ("I borrowed 40 euros from my neighbour Henrike.", "Who did I borrow money from?", "Henrike"),
)
REPLY_TOKENS = 24
SHOWN_LAYERS = (14, 18, 22, 26)
FULL_TEXT = "frozen model, text in view"


def main() -> None:
    model, tokenizer = load(smollm2.build(), ADAPTER)
    console = Console(width=110)
    table = Table(
        title="One chat each; the text of a turn is dropped when it ends", title_justify="left", show_lines=True
    )
    columns = (WITH, WITHOUT, FULL_TEXT)
    for heading in ("you", "the model", "you, next", *columns):
        # The replies without the memory are long and have long words.
        table.add_column(heading, width=17 if heading in (WITHOUT, FULL_TEXT) else 14)
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
    print(f"A reply is right if it names the value. Most chats are harder: see adapters/{ADAPTER.name}/README.md.")


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
