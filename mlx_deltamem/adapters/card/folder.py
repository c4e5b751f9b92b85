"""Read and write an adapter's folder together with its model card.

The commands use these functions. `load_adapter` and `save_adapter` leave model cards alone.
"""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from mlx_deltamem.adapters.card.card import KNOWN, Card, has_sections, make_card, names
from mlx_deltamem.adapters.card.metadata import parse_block, read_card
from mlx_deltamem.adapters.folder import load_found, save_adapter, saved_metadata
from mlx_deltamem.adapters.hub import find_adapter
from mlx_deltamem.core.adapter import CARD_FILE, Adapter
from mlx_deltamem.files.atomic import new_file, new_folder


def load_with_card(path: str | Path) -> Adapter:
    """Read an adapter as `load_adapter` does, and add the model, licence and source that its card names.

    They replace those in the weights file. A card that is damaged is ignored.

    Raises:
        FileNotFoundError: There is no such folder or repo, or it lacks the configuration or the weights.
        ValueError: A file is damaged, or the adapter is not complete; the message lists every problem.
    """
    found = find_adapter(path)
    return load_found(found, card_metadata(found.path))


def save_with_card(adapter: Adapter, path: str | Path) -> None:
    """Write an adapter as `save_adapter` does, and write its card or bring the card up to date.

    A card that is written entirely by hand, or that is damaged, is left as it is.

    Raises:
        ValueError: The adapter is not complete.
        OSError: The folder cannot be written; files that were there are unchanged.
    """
    path = Path(path)
    with nullcontext(path) if path.exists() else new_folder(path) as folder:
        save_adapter(adapter, folder)
        # The user must repair a card that cannot be read; that is no reason to lose the weights.
        with suppress(ValueError, IsADirectoryError):
            refresh_card(folder, replace(adapter, metadata=saved_metadata(adapter)))


def refresh_card(folder: Path, adapter: Adapter) -> None:
    """Write the card of the adapter in a folder, unless the card that is there is written entirely by hand.

    Raises:
        ValueError: The card that is there is damaged; it is left as it is.
    """
    path = folder / CARD_FILE
    if not path.exists() or has_sections(read_card(path).body):
        write_card(folder, make_card(folder, adapter))


def write_card(folder: Path, card: Card) -> None:
    """Write a card into its adapter's folder."""
    with new_file(folder / CARD_FILE) as file:
        file.write_bytes(card.text.encode())


def card_metadata(folder: Path) -> dict[str, str]:
    """Return the model, licence and source that the card in a folder names; nothing if it cannot be read."""
    path = folder / CARD_FILE
    try:
        data = parse_block(read_card(path).block, path)
    except (OSError, ValueError):
        return {}
    return {name: given[0] for name in KNOWN if len(given := names(data.get(name))) == 1}
