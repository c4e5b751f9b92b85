"""What the tables share: how they look, and how numbers and lists of layers are written."""

import math
from collections.abc import Collection, Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# Columns of numbers that fit side by side in 80 characters, beside one for the layer.
_MOST_COLUMNS = 7


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """Names and values, one pair a line."""
    table = _titled(title, box=None, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(str(value)))
    return table


def columns(title: str, *headings: str, texts: Collection[int] = ()) -> Table:
    """An empty table; `texts` are the indices of the columns that hold texts, the others hold numbers."""
    table = _titled(title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in texts else "right", overflow="fold")
    return table


def by_layer(title: str, numbers: Mapping[str, Mapping[int, float]]) -> list[Table]:
    """Numbers of several kinds for each layer, as many tables as the kinds need."""
    kinds = list(numbers)
    tables = []
    for first in range(0, len(kinds), _MOST_COLUMNS):
        some = kinds[first : first + _MOST_COLUMNS]
        table = columns(title, "layer", *(kind.replace("_", "_\n") for kind in some))
        for layer in sorted({layer for kind in some for layer in numbers[kind]}):
            table.add_row(str(layer), *(number(numbers[kind].get(layer)) for kind in some))
        tables.append(table)
    return tables


def _titled(title: str, **options: object) -> Table:
    # It may be wider than the table, which would break it.
    shown = Text(title, style="bold", no_wrap=True, overflow="ignore")
    return Table(title=shown, title_justify="left", **options)


def number(value: float | None) -> str:
    """A number in at most nine characters; `-` for one that there is not."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def span(values: Iterable[float]) -> str:
    """From the smallest of some numbers to the largest; those that are none are left out."""
    numbers = [value for value in values if not math.isnan(value)] or [math.nan]
    low, high = min(numbers), max(numbers)
    return " to ".join(dict.fromkeys((number(low), number(high))))


def setting(value: object) -> str:
    """The value of a setting."""
    return (", ".join(map(str, value)) or "(none)") if isinstance(value, tuple | list) else str(value)


def count(size: int, what: str) -> str:
    """`1 layer`, `1,024 bytes`"""
    return f"{size:,} {what}" if size != 1 else f"1 {what.removesuffix('s')}"
