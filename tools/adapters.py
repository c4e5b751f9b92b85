"""Check every adapter that comes with the project, and the index of them in adapters/README.md."""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.filesize import decimal

from mlx_deltamem.core.adapter import CARD_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.card.card import Card, make_card, names, write_card
from mlx_deltamem.cli.command import command
from mlx_deltamem.files.atomic import new_file

ADAPTERS = Path(__file__).parents[1] / "adapters"
# They are in every clone for ever.
LARGEST_FOLDER = 8_000_000

_INDEX = re.compile(r"(?<=<!-- index -->\n).*?(?=<!-- /index -->)", re.S)


@dataclass(frozen=True)
class Found:
    """An adapter of the project and its card as it should be."""

    folder: Path
    adapter: Adapter
    card: Card


def check(folder: Path, write: bool = False) -> tuple[Found | None, list[str]]:
    """Read one adapter, and say what is wrong with its folder; `write` brings its card up to date first."""
    try:
        adapter = load_adapter(folder)
        if adapter.file != WEIGHTS_FILE:
            return None, [f"it holds {adapter.file}; convert it with mlx_deltamem.convert"]
        card = make_card(folder, adapter)
        if write:
            write_card(folder, card)
        current = (folder / CARD_FILE).read_bytes() if (folder / CARD_FILE).is_file() else b""
    except (OSError, ValueError) as error:
        return None, [str(error)]
    problems = list(card.problems)
    if card.text.encode() != current:
        problems.append(f"its {CARD_FILE} does not say what its files hold; run `python -m tools.adapters --write`")
    if card.missing:
        problems.append(f"its {CARD_FILE} lacks {' and '.join(card.missing)}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST_FOLDER:
        problems.append(f"it is {decimal(size)}; at most {decimal(LARGEST_FOLDER)} go into the repository")
    return Found(folder, adapter, card), problems


def index(adapters: list[Found]) -> str:
    """The table in adapters/README.md."""
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
    """Check all; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.adapters", description=__doc__)
    parser.add_argument("--path", type=Path, default=ADAPTERS, help="The folder of the adapters' folders.")
    parser.add_argument("--write", action="store_true", help="Bring cards and index up to date first.")
    args = parser.parse_args()
    console, good, wrong = Console(soft_wrap=True, markup=False, highlight=False), [], 0
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
        console.print("README.md: its index does not list what is there; run `python -m tools.adapters --write`")
        return 1
    return 0


if __name__ == "__main__":
    main()
