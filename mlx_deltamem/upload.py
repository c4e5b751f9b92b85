"""Publish an adapter on the Hugging Face Hub."""

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console
from rich.filesize import decimal
from rich.prompt import Confirm
from rich.table import Table

from mlx_deltamem.adapter import CARD_FILE, RESULTS_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.adapter_folder import load_adapter
from mlx_deltamem.card import Card, make_card, write_card
from mlx_deltamem.command import command
from mlx_deltamem.config import CONFIG_FILE
from mlx_deltamem.hub_errors import upload_errors

_PICTURE = re.compile(r"!\[[^\]]*\]\((?P<path>[^)\s]+\.(?:png|svg|jpe?g|gif|webp))[^)]*\)", re.IGNORECASE)

Confirmation = Callable[[str], bool]


@dataclass(frozen=True)
class Parcel:
    """What an upload sends: an adapter's own files, checked.

    Attributes:
        folder: Where they are.
        repo: The Hub repo (USER/NAME) they go to.
        adapter: What they hold.
        card: The model card as it goes up; in the folder it is written just before.
        files: The names of the files.
        left_out: The names of what else is in the folder.
    """

    folder: Path
    repo: str
    adapter: Adapter
    card: Card
    files: list[str]
    left_out: list[str]

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return len(self.card.text.encode()) if name == CARD_FILE else (self.folder / name).stat().st_size


def pack(folder: Path, repo: str, base_model: str | None = None, licence: str | None = None) -> Parcel:
    """Check an adapter's folder and list what of it goes up.

    Args:
        folder: The adapter's folder.
        repo: The Hub repo (USER/NAME) it is going to.
        base_model, licence: For its card, which else keeps what it says.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks files.
        ValueError: The adapter is damaged or not whole, or its card lacks something.
    """
    _check_repo("--upload-repo", repo)
    if base_model is not None:
        _check_repo("--base-model", base_model)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected an adapter's folder")
    adapter = load_adapter(folder)
    if adapter.file != WEIGHTS_FILE:
        raise ValueError(f"{folder} holds {adapter.file}; convert it with mlx_deltamem.convert and upload the result")
    card = make_card(folder, adapter, repo, base_model, licence)
    if card.missing:
        options = {"base_model": "--base-model USER/NAME", "license": "--license NAME (for instance mit)"}
        given = " and ".join(options.get(name, name) for name in card.missing)
        raise ValueError(f"the model card of {folder} lacks {' and '.join(card.missing)}; give {given}")
    files = [CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, *([RESULTS_FILE] if (folder / RESULTS_FILE).is_file() else [])]
    files += _pictures(folder, card)
    tops = {name.split("/")[0] for name in files}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in tops)
    return Parcel(folder, repo, adapter, card, files, left_out)


def upload(parcel: Parcel, private: bool = False, confirm: Confirmation = lambda question: False) -> str:
    """Send a parcel to the Hub. What was cut off can be sent again; the Hub takes all files or none.

    Args:
        parcel: From `pack`.
        private: Make a new repo private.
        confirm: Asked before a repo of another kind is overwritten.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The Hub refused something or could not be reached, or the repo that is there is another's.
    """
    api = HfApi()
    with upload_errors(parcel.repo):
        ModelCard(parcel.card.text).validate()
        found = _existing(api, parcel.repo)
    if found is not None:
        _check_existing(found, parcel, private, confirm)
    write_card(parcel.folder, parcel.card)
    with upload_errors(parcel.repo):
        api.create_repo(parcel.repo, private=private or None, exist_ok=True)
        additions = [CommitOperationAdd(name, str(parcel.folder / name)) for name in parcel.files]
        return api.create_commit(parcel.repo, additions, commit_message="Upload a δ-mem adapter").commit_url


def add_upload_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--upload-repo` and what belongs to it."""
    parser.add_argument("--upload-repo", required=required, help="The Hub repo (USER/NAME) to upload the adapter to.")
    parser.add_argument("--private", action="store_true", help="Make the repo private, if it is new.")
    parser.add_argument("--base-model", help="For the model card: the Hub repo of the model that the adapter is for.")
    parser.add_argument("--license", help="For the model card: the adapter's licence, by its name on the Hub.")
    parser.add_argument("--yes", action="store_true", help="Overwrite a repo of another model without asking.")


def upload_folder(folder: Path, args: argparse.Namespace, dry_run: bool = False) -> None:
    """Show what of a folder goes up and, unless it is a dry run, send it; `args` are from `add_upload_options`."""
    console = Console()
    parcel = pack(folder, args.upload_repo, args.base_model, args.license)
    _show(parcel, console)
    if dry_run:
        console.print("Nothing was sent (--dry-run).")
        return
    address = upload(parcel, args.private, lambda question: args.yes or _ask(question))
    console.print(f"Uploaded: {address}", highlight=False, soft_wrap=True)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.upload", description=__doc__)
    parser.add_argument("--path", required=True, help="The adapter's folder.")
    add_upload_options(parser, required=True)
    parser.add_argument("--dry-run", action="store_true", help="Check everything and show what would be sent.")
    return parser


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    upload_folder(Path(args.path).expanduser(), args, args.dry_run)


def _check_repo(option: str, name: str) -> None:
    with suppress(HFValidationError):
        validate_repo_id(name)
        if "/" in name:
            return
    raise ValueError(f"{option} is {name}; expected the name of a Hub repo (USER/NAME)")


def _pictures(folder: Path, card: Card) -> list[str]:
    """The pictures of the folder that its card shows."""
    shown = dict.fromkeys(match["path"].removeprefix("./") for match in _PICTURE.finditer(card.text))
    home = folder.resolve()
    return [name for name in shown if (folder / name).is_file() and (folder / name).resolve().is_relative_to(home)]


def _existing(api: HfApi, repo: str) -> ModelInfo | None:
    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _check_existing(found: ModelInfo, parcel: Parcel, private: bool, confirm: Confirmation) -> None:
    if private and not found.private:
        raise ValueError(f"{parcel.repo} is there already and public; make it private on the Hub, or name another repo")
    theirs, ours = found.card_data and found.card_data.get("base_model"), parcel.card.data.base_model
    files = {file.rfilename for file in found.siblings or ()} - {".gitattributes", CARD_FILE}
    if files and CONFIG_FILE not in files:
        question = f"{parcel.repo} is there already and holds no δ-mem adapter ({len(files)} files)"
    elif theirs and theirs != ours:
        question = f"{parcel.repo} is there already and is for {theirs}, this adapter for {ours}"
    else:
        return
    if not confirm(f"{question}; upload all the same?"):
        raise ValueError(f"{question}; name another repo, or give --yes")


def _ask(question: str) -> bool:
    return sys.stdin.isatty() and Confirm.ask(question, default=False)


def _show(parcel: Parcel, console: Console) -> None:
    adapter = parcel.adapter
    size = f"{adapter.parameters:,} parameters in {len(adapter.weights_by_layer())} layers, all finite"
    console.print(f"{parcel.folder}: {size}", soft_wrap=True)
    table = Table("goes to " + parcel.repo, "size")
    table.columns[1].justify = "right"
    for name in parcel.files:
        table.add_row(name, decimal(parcel.size(name)))
    table.add_section()
    table.add_row("in all", decimal(sum(map(parcel.size, parcel.files))))
    console.print(table)
    if parcel.card.kept:
        console.print(f"Edited by hand in {CARD_FILE} and left as it is: {', '.join(parcel.card.kept)}")
    if parcel.left_out:
        console.print(f"Left out: {', '.join(parcel.left_out)}", soft_wrap=True)


if __name__ == "__main__":
    main()
