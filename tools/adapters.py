"""Check every adapter that comes with the project, and the index of them in adapters/README.md."""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from mlx_deltamem.adapter import CARD_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.adapter_folder import load_adapter
from mlx_deltamem.card import make_card, write_card
from mlx_deltamem.files import new_file

ADAPTERS = Path(__file__).parents[1] / "adapters"
# They are in every clone for ever.
LARGEST_FOLDER = 8_000_000

_INDEX = re.compile(r"(?<=<!-- index -->\n).*?(?=<!-- /index -->)", re.S)


def check(folder: Path, write: bool = False) -> tuple[Adapter | None, list[str]]:
    """Read one adapter, and say what is wrong with its folder; `write` brings its card up to date first."""
    try:
        adapter = load_adapter(folder)
        if adapter.file != WEIGHTS_FILE:
            return None, [f"it holds {adapter.file}; convert it with mlx_deltamem.convert"]
        if write:
            write_card(folder, make_card(folder, adapter))
        card = make_card(folder, adapter)
    except (FileNotFoundError, ValueError) as error:
        return None, [str(error)]
    problems = []
    if not (folder / CARD_FILE).is_file() or card.text != (folder / CARD_FILE).read_text(encoding="utf-8"):
        problems.append(f"its {CARD_FILE} does not say what its files hold; run `python -m tools.adapters --write`")
    if card.missing:
        problems.append(f"its {CARD_FILE} lacks {' and '.join(card.missing)}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST_FOLDER:
        problems.append(f"it is {decimal(size)}; at most {decimal(LARGEST_FOLDER)} go into the repository")
    return adapter, problems


def index(adapters: dict[str, tuple[Adapter, Path]]) -> str:
    """The table in adapters/README.md."""
    if not adapters:
        return "There is none yet.\n"
    lines = ["| folder | for | weights | memory |", "|---|---|---|---|"]
    for name, (adapter, folder) in adapters.items():
        model = make_card(folder, adapter).data.base_model
        size = decimal((folder / WEIGHTS_FILE).stat().st_size)
        lines.append(
            f"| [{name}]({name}) | {model} | {adapter.parameters:,} in {size} | {adapter.state_bytes:,} bytes |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check all; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.adapters", description=__doc__)
    parser.add_argument("--path", type=Path, default=ADAPTERS, help="The folder of the adapters' folders.")
    parser.add_argument("--write", action="store_true", help="Bring cards and index up to date first.")
    args = parser.parse_args()
    console, found, wrong = Console(soft_wrap=True), {}, 0
    for folder in sorted(path for path in args.path.iterdir() if path.is_dir()):
        adapter, problems = check(folder, args.write)
        if adapter is not None:
            found[folder.name] = adapter, folder
        wrong += len(problems)
        console.print(f"{folder.name}: {'; '.join(problems) or 'good'}")
    wrong += _check_index(args.path / "README.md", index(found), args.write, console)
    console.print(f"adapters: {len(found)}, problems: {wrong}")
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
