"""Print the chats that are kept: all of them, or those with a text in them."""

import time
from pathlib import Path

from rich.text import Text

from mlx_deltamem.cli.kept import KeptChats
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.printable import printable
from mlx_deltamem.show.tables import columns


def print_list(kept: KeptChats) -> None:
    """Print a table of all chats, the last one first."""
    chats, unreadable = kept.all()
    console = Console()
    if not chats:
        console.print(f"no chat is kept in {kept.folder}", markup=False, soft_wrap=True)
    else:
        table = columns(str(kept.folder), "number", "saved", "turns", "model", "title", texts=(1, 3, 4))
        for chat in chats:
            saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(chat.saved))
            origin = chat.texts.origin
            table.add_row(
                str(chat.number), saved, f"{chat.texts.turns:,}", printable(Path(origin.name).name, ""), chat.title
            )
        console.print(table)
    for file in unreadable:
        console.print(f"{file} is no chat of this version", style="dim", markup=False, soft_wrap=True)


def print_found(kept: KeptChats, text: str) -> None:
    """Print the messages with a text in them, in whatever case.

    Raises:
        ValueError: The text is empty, or no message has it.
    """
    if not text.strip():
        raise ValueError("--search is empty; expected a text")
    found = kept.search(text)
    if not found:
        raise ValueError(f"no message in {kept.folder} has {text!r}; --list prints the chats")
    console = Console()
    last = None
    for chat, role, part in found:
        if chat.number != last:
            console.print(Text(f"{chat.number}  {printable(chat.title, '')}", style="bold"), soft_wrap=True)
            last = chat.number
        console.print(Text(f"   {role}: {printable(part, '')}"), soft_wrap=True)
