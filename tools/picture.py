"""Draw the picture of the README from a real run of the demo: `python -m tools.picture`.

It shows the first facts of the demo, in order: each is told, its text is dropped, and it is asked for with the memory
and without.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import io
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.terminal_theme import MONOKAI
from rich.text import Text

from mlx_deltamem.cli.command import command
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.demo.facts import FACTS, Told, tell
from mlx_deltamem.demo.model import ADAPTER
from mlx_deltamem.sessions.comparison import WITH, WITHOUT
from tools import smollm2

PICTURE = Path(__file__).parents[1] / ".github" / "pictures" / "demo.svg"
SHOWN = 3
_WIDTH = 96
_LONGEST = 90


def picture(all_told: list[Told]) -> str:
    """The picture, as SVG."""
    console = Console(width=_WIDTH, record=True, file=io.StringIO())
    for told in all_told:
        console.print(_exchange(told))
    return console.export_svg(title="mlx_deltamem demo: SmolLM2-135M with a memory", theme=MONOKAI)


def _exchange(told: Told) -> Group:
    size = sum(state.nbytes for state in told.memory.values())
    table = Table(box=box.ROUNDED, border_style="grey50")
    table.add_column(Text(WITH, style="bold green"), width=34)
    table.add_column(Text(WITHOUT, style="bold red"), width=48)
    table.add_row(*(Text(_shortened(told.replies[name])) for name in (WITH, WITHOUT)))
    return Group(
        Text.assemble(("You    ", "bold cyan"), told.fact.told),
        Text.assemble(("Model  ", "bold"), told.reply),
        Text(f"       (the text is dropped; a memory of {size:,} bytes stays)", style="grey50 italic"),
        Text.assemble(("You    ", "bold cyan"), told.fact.question),
        Padding(table, (0, 0, 1, 5)),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " ..."


@command
def main() -> None:
    """Draw the picture."""
    model, tokenizer = load(smollm2.build(), ADAPTER)
    told = [tell(model, tokenizer, fact) for fact in FACTS[:SHOWN]]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(told), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()
