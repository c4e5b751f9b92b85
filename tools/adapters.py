"""Check the adapters that come with the project and their index: `python -m tools.adapters` (or `make adapters`).

The index is a table in adapters/README.md. `--write` brings the model cards and the index up to date first.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.filesize import decimal

from mlx_deltamem.adapters.card.card import Card, make_card, names
from mlx_deltamem.adapters.card.folder import load_with_card, write_card
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.core.adapter import CARD_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.files.atomic import new_file

ADAPTERS = Path(__file__).parents[1] / "adapters"
# Bytes. Every clone downloads each adapter, in all its versions.
LARGEST_FOLDER = 8_000_000

_INDEX = re.compile(r"(?<=<!-- index -->\n).*?(?=<!-- /index -->)", re.S)


@dataclass(frozen=True)
class Found:
    """An adapter of the project, and the model card that its files call for."""

    folder: Path
    adapter: Adapter
    card: Card


def check(folder: Path, write: bool = False) -> tuple[Found | None, list[str]]:
    """Read one adapter and look for mistakes in its folder.

    Args:
        folder: The adapter's folder.
        write: Bring its model card up to date first.

    Returns:
        The adapter (None if it cannot be read), and one line for each mistake.
    """
    try:
        adapter = load_with_card(folder)
        if adapter.file != WEIGHTS_FILE:
            return None, [f"found {adapter.file}, expected {WEIGHTS_FILE}; convert it with mlx_deltamem.convert"]
        card = make_card(folder, adapter)
        if write:
            write_card(folder, card)
        current = (folder / CARD_FILE).read_bytes() if (folder / CARD_FILE).is_file() else b""
    except (OSError, ValueError) as error:
        return None, [str(error)]
    problems = list(card.problems)
    if card.text.encode() != current:
        problems.append(f"its {CARD_FILE} does not match its files; run `python -m tools.adapters --write`")
    if card.missing:
        problems.append(f"its {CARD_FILE} lacks {' and '.join(card.missing)}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST_FOLDER:
        problems.append(f"found {decimal(size)}, expected at most {decimal(LARGEST_FOLDER)} in a folder")
    return Found(folder, adapter, card), problems


def index(adapters: list[Found]) -> str:
    """Return the table of adapters/README.md."""
    if not adapters:
        return "There is none yet.\n"
    lines = ["| folder | for | weights | memory |", "|---|---|---|---|"]
    for found in adapters:
        name, adapter = found.folder.name, found.adapter
        weights = f"{adapter.parameters:,} in {decimal((found.folder / WEIGHTS_FILE).stat().st_size)}"
        models = " and ".join(names(found.card.data.get("base_model")))
        lines.append(f"| [{name}]({quote(name)}) | {models} | {weights} | {adapter.state_bytes:,} bytes |")
    return "\n".join(lines) + "\n"


@command
def main() -> None:
    """Check all adapters. The exit code is 1 if there is a mistake."""
    parser = Parser(prog="python -m tools.adapters", description=__doc__)
    parser.add_argument("--path", type=Path, default=ADAPTERS, help="The folder of the adapters' folders.")
    parser.add_argument("--write", action="store_true", help="Bring cards and index up to date first.")
    args = parser.parse_args()
    console = Console(soft_wrap=True, markup=False, highlight=False)
    good: list[Found] = []
    wrong = 0
    for folder in sorted(path for path in args.path.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found, problems = check(folder, args.write)
        good += [found] if found is not None else []
        wrong += len(problems)
        console.print(f"{folder.name}: {'; '.join(problems) or 'good'}")
    wrong += _check_index(args.path / "README.md", index(good), args.write, console)
    console.print(f"adapters: {len(good)}, problems: {wrong}")
    sys.exit(1 if wrong else 0)


def _check_index(path: Path, expected: str, write: bool, console: Console) -> int:
    text = path.read_text(encoding="utf-8")
    right = _INDEX.sub(lambda _: expected, text)
    if write and right != text:
        with new_file(path) as file:
            file.write_text(right, encoding="utf-8")
    elif right != text or not _INDEX.search(text):
        console.print("README.md: its index does not match the folders; run `python -m tools.adapters --write`")
        return 1
    return 0


if __name__ == "__main__":
    main()
