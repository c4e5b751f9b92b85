"""The work of `mlx_deltamem.upload`, which mlx_deltamem.convert does too if it is asked to."""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from mlx_deltamem.adapters.publish import Parcel, pack, upload
from mlx_deltamem.core.adapter import CARD_FILE, RESULTS_FILE
from mlx_deltamem.show.console import Console

# The tasks that tell how far an adapter moves its model, and what it recalls.
_HEALTH, _RECALL = "health", "recall"
_MISSING = {_HEALTH: "how far the adapter moves its model", _RECALL: "what it recalls"}


def upload_folder(folder: Path, args: argparse.Namespace, dry_run: bool = False) -> None:
    """Show the files of an adapter's folder that are uploaded, and upload them unless it is a dry run.

    Args:
        folder: The adapter's folder.
        args: The values of the options from `add_upload_options`.
        dry_run: Check and show the files only.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks files.
        ValueError: The adapter or its card is not complete, or the upload failed.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    parcel = pack(folder, args.upload_repo, args.base_model, args.license)
    _show(parcel, console)
    if dry_run:
        console.print("Nothing was sent (--dry-run).")
        return
    address = upload(parcel, args.private, lambda question: args.yes or _ask(question))
    console.print(f"Uploaded: {address}")


def _ask(question: str) -> bool:
    """Ask on the terminal; without a terminal the answer is no."""
    try:
        return sys.stdin.isatty() and Confirm.ask(escape(question), default=False)
    except EOFError:
        return False


def _show(parcel: Parcel, console: Console) -> None:
    adapter = parcel.adapter
    size = f"{adapter.parameters:,} parameters in {len(adapter.weights_by_layer())} layers, all finite"
    console.print(f"{parcel.folder}: {size}")
    table = Table(f"goes to {parcel.repo}", "size", "bytes")
    # A long name is continued on the next line: it must be seen as a whole.
    table.columns[0].overflow = "fold"
    table.columns[1].justify = table.columns[2].justify = "right"
    sizes = {name: len(content) for name, content in parcel.contents.items()}
    for name, count in sizes.items():
        table.add_row(name, decimal(count), f"{count:,}")
    table.add_section()
    total = sum(sizes.values())
    table.add_row("total", decimal(total), f"{total:,}")
    console.print(table)
    metadata = {name: value for name, value in adapter.metadata.items() if name not in ("format", "mlx_deltamem")}
    if metadata:
        console.print("Metadata: " + ", ".join(f"{name} {value}" for name, value in metadata.items()))
    if parcel.card.kept:
        console.print(f"Edited by hand in {CARD_FILE} and left as it is: {', '.join(parcel.card.kept)}")
    if parcel.left_out:
        console.print(f"Left out: {', '.join(parcel.left_out)}")
    _show_results(parcel, console)


def _show_results(parcel: Parcel, console: Console) -> None:
    """Show how far the adapter moves its model beside what it recalls, as its card does; or say that it is unknown."""
    # The card was made from the same bytes, so they are complete.
    results = json.loads(parcel.contents.get(RESULTS_FILE, b"{}"))
    health = results.get("health")
    rows = (
        [] if health is None else [(f"perplexity, {each['meaning']}", "ratio", each) for each in health["perplexity"]]
    )
    rows += [] if health is None else [("replies as without the adapter, %", "value", health["replies_equal"])]
    recalled = [each for each in results.get("results", []) if each.get("task") == _RECALL]
    rows += [(f"recall, {each.get('metric')} under {each.get('condition')}, %", "value", each) for each in recalled]
    if rows:
        table = Table("measured, as the card says", "", "95 %")
        table.columns[1].justify = "right"
        for name, key, each in rows:
            interval = each.get("interval")
            low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
            table.add_row(name, _number(each.get(key)), f"{_number(low)} to {_number(high)}")
        console.print(table)
    missing = [name for name, found in ((_HEALTH, health), (_RECALL, recalled)) if not found]
    if missing:
        console.print(
            f"Not measured: {' and '.join(_MISSING[name] for name in missing)}. Measure it with mlx_deltamem.evaluate "
            f"--tasks {_RECALL},{_HEALTH}, and put its {RESULTS_FILE}, which has both, into the folder."
        )


def _number(value: object) -> str:
    # No float is as large as some whole numbers of JSON.
    with suppress(OverflowError):
        return f"{value:.4g}" if isinstance(value, int | float) else "–"
    return "–"
