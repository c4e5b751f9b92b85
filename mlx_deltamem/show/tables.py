"""Tables on a terminal: how they look, how numbers are written in them, and how they are printed."""

import math
from collections.abc import Collection, Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from mlx_deltamem.show.console import Console
from mlx_deltamem.show.printable import printable

# So many columns of numbers fit into 80 characters beside the column of layers.
_MOST_COLUMNS = 7


class PlainTable(Table):
    """A table of texts that anyone may have written: brackets in them are no markup."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row."""
        texts = (escape(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*texts, style=style, end_section=end_section)


def facts(title: str, rows: Mapping[str, object]) -> Table:
    """A table of names and values, one pair a line."""
    table = PlainTable(title=_title(title), title_justify="left", box=None, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def columns(title: str, *headings: str, texts: Collection[int] = ()) -> PlainTable:
    """An empty table.

    Args:
        title: Its title.
        headings: One for each column.
        texts: The indices of the columns that hold texts. The other columns hold numbers, which stand at the right.
    """
    table = PlainTable(title=_title(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if index in texts else "right", overflow="fold")
    return table


def by_layer(title: str, numbers: Mapping[str, Mapping[int, float]]) -> list[Table]:
    """Tables with a row for each layer and a column for each kind of number; as many tables as the columns need.

    Args:
        title: The title of each table.
        numbers: The numbers by kind and layer.
    """
    kinds = list(numbers)
    tables: list[Table] = []
    for first in range(0, len(kinds), _MOST_COLUMNS):
        some = kinds[first : first + _MOST_COLUMNS]
        table = columns(title, "layer", *(kind.replace("_", "_\n") for kind in some))
        for layer in sorted({layer for kind in some for layer in numbers[kind]}):
            table.add_row(str(layer), *(number(numbers[kind].get(layer)) for kind in some))
        tables.append(table)
    return tables


def difference_table(title: str, fields: Mapping[str, tuple[object, object]]) -> Table:
    """A table of the settings in which A and B differ.

    Args:
        title: The title of the table.
        fields: The values of A and B by name; empty if no setting differs.
    """
    if not fields:
        return facts(title, {"same": "in both"})
    table = columns(title, "field", "A", "B", texts=(0, 1, 2))
    for name, values in fields.items():
        table.add_row(name, *(setting(value) for value in values))
    return table


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables to standard output, with an empty line after each."""
    console = Console()
    for table in tables:
        console.print(table)
        console.print()


def number(value: float | None) -> str:
    """A number in at most nine characters; `-` for None and for NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def span(values: Iterable[float]) -> str:
    """`1.2 to 3.4`, the smallest and the largest of some numbers; NaN is left out."""
    numbers = [value for value in values if not math.isnan(value)] or [math.nan]
    low, high = min(numbers), max(numbers)
    return " to ".join(dict.fromkeys((number(low), number(high))))


def setting(value: object) -> str:
    """The value of a setting; the items of a list with commas between them."""
    return (", ".join(map(str, value)) or "(none)") if isinstance(value, tuple | list) else str(value)


def count(size: int, what: str) -> str:
    """A number and its unit: `1 layer`, `1,024 bytes`."""
    return f"{size:,} {what}" if size != 1 else f"1 {what.removesuffix('s')}"


def message(who: str, text: str) -> Text:
    """A message of a chat: the one who said it in bold, and the text."""
    return Text.assemble((f"{printable(who)}:", "bold"), " ", printable(text))


def _title(title: str) -> Text:
    # Without these options a title that is wider than its table would be broken into lines.
    return Text(printable(title, keep=""), style="bold", no_wrap=True, overflow="ignore")
