"""Print tables on a terminal, or into a file."""

import io
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables, an empty line after each."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An encoding that lacks a sign must not lose the rest.
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    for table in tables:
        console.print(table)
        console.print()
