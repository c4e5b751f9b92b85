"""The work of `mlx_deltamem.upload`, which mlx_deltamem.convert does too if it is asked to."""

import argparse
import sys
from pathlib import Path

from rich.filesize import decimal
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from mlx_deltamem.adapters.publish import Parcel, pack, upload
from mlx_deltamem.core.adapter import CARD_FILE
from mlx_deltamem.show.console import Console


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
        table.add_row(escape(name), decimal(count), f"{count:,}")
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
