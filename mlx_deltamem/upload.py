"""Publish an adapter on the Hugging Face Hub."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from mlx_deltamem.adapters.card.card import Card, make_card, names, write_card
from mlx_deltamem.adapters.card.pictures import shown_pictures
from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import upload_errors
from mlx_deltamem.cli.command import command
from mlx_deltamem.core.adapter import CARD_FILE, RESULTS_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.training.origin import published_run

# How an upload is told from what others change in a repo.
_TITLE = "Upload a δ-mem adapter with mlx_deltamem"
# What the Hub puts into a new repo by itself.
_HUB_FILES = {".gitattributes"}

Confirmation = Callable[[str], bool]


@dataclass(frozen=True)
class Parcel:
    """What an upload sends: an adapter's own files, checked, as they were then.

    Attributes:
        folder: Where they are from.
        repo: The Hub repo (USER/NAME) they go to.
        adapter: What they hold.
        card: The model card as it goes up.
        old_card: The card that is in the folder; None if there is none.
        contents: The files by name.
        left_out: The names of what else is in the folder.
    """

    folder: Path
    repo: str
    adapter: Adapter
    card: Card
    old_card: bytes | None
    contents: dict[str, bytes]
    left_out: list[str]


def pack(folder: Path, repo: str, base_model: str | None = None, licence: str | None = None) -> Parcel:
    """Check an adapter's folder and read what of it goes up.

    Args:
        folder: The adapter's folder.
        repo: The Hub repo (USER/NAME) it is going to.
        base_model, licence: For its card, which else keeps what it says.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks files.
        ValueError: The adapter is damaged or not whole, or its card lacks something.
        OSError: A file cannot be read.
    """
    check_names(repo, base_model)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected an adapter's folder")
    adapter = load_adapter(folder)
    if adapter.file != WEIGHTS_FILE:
        raise ValueError(f"{folder} holds {adapter.file}; convert it with mlx_deltamem.convert and upload the result")
    old_card = _content(folder / CARD_FILE)
    card = make_card(folder, adapter, repo, base_model, licence)
    _check_card(folder, card)
    files = [CONFIG_FILE, WEIGHTS_FILE, *([RESULTS_FILE] if (folder / RESULTS_FILE).is_file() else [])]
    files += shown_pictures(folder, card.text)
    contents = {CARD_FILE: card.text.encode()} | {name: (folder / name).read_bytes() for name in files}
    if "trained" in adapter.metadata:
        contents |= published_run(folder)
    tops = {name.split("/")[0] for name in contents}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in tops)
    return Parcel(folder, repo, adapter, card, old_card, contents, left_out)


def upload(parcel: Parcel, private: bool = False, confirm: Confirmation = lambda question: False) -> str:
    """Send a parcel to the Hub, and keep its card in the folder. The Hub takes all files or none, so that what was cut
    off can be sent again.

    Args:
        parcel: From `pack`.
        private: Make a new repo private.
        confirm: Asked before something is overwritten that is another's, or that was changed on the Hub.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The Hub refused something or could not be reached, or the repo that is there is another's.
    """
    api, repo = HfApi(), parcel.repo
    with upload_errors(repo):
        complaint = _complaint(parcel.card)
        found = _existing(api, repo)
        title = api.list_repo_commits(repo)[0].title if found is not None else ""
    if complaint is not None:
        raise ValueError(f"the Hub does not accept the model card of {parcel.folder}: {complaint}")
    if found is not None:
        _check_existing(found, title, parcel, private, confirm)
    additions = [CommitOperationAdd(name, content) for name, content in parcel.contents.items()]
    with upload_errors(repo):
        if found is None:
            api.create_repo(repo, private=private or None)
        # What came to the repo since it was looked at is not overwritten.
        parent = found and found.sha
        address = api.create_commit(repo, additions, commit_message=_TITLE, parent_commit=parent).commit_url
    _keep_card(parcel)
    return address


def check_names(repo: str, base_model: str | None = None) -> None:
    """Raise ValueError unless these can be names of Hub repos."""
    for option, name in (("--upload-repo", repo), ("--base-model", base_model)):
        if name is not None and not is_repo_name(name):
            raise ValueError(f"{option} is {name}; expected the name of a Hub repo (USER/NAME)")


def add_upload_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--upload-repo` and what belongs to it."""
    parser.add_argument("--upload-repo", required=required, help="The Hub repo (USER/NAME) to upload the adapter to.")
    parser.add_argument("--private", action="store_true", help="Make the repo private, if it is new.")
    parser.add_argument("--base-model", help="For the model card: the Hub repo of the model that the adapter is for.")
    parser.add_argument("--license", help="For the model card: the adapter's licence, by its name on the Hub.")
    parser.add_argument("--yes", action="store_true", help="Overwrite what is another's without asking.")


def upload_folder(folder: Path, args: argparse.Namespace, dry_run: bool = False) -> None:
    """Show what of a folder goes up and, unless it is a dry run, send it; `args` are from `add_upload_options`."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    parcel = pack(folder, args.upload_repo, args.base_model, args.license)
    _show(parcel, console)
    if dry_run:
        console.print("Nothing was sent (--dry-run).")
        return
    address = upload(parcel, args.private, lambda question: args.yes or _ask(question))
    console.print(f"Uploaded: {address}")


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.upload", description=__doc__)
    parser.add_argument("--path", required=True, help="The adapter's folder.")
    add_upload_options(parser, required=True)
    parser.add_argument(
        "--dry-run", action="store_true", help="Check what can be checked on this machine and show what would be sent."
    )
    return parser


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    upload_folder(user_path(args.path), args, args.dry_run)


def _check_card(folder: Path, card: Card) -> None:
    if card.missing:
        options = {"base_model": "--base-model USER/NAME", "license": "--license NAME (for instance mit)"}
        given = " and ".join(options[name] for name in card.missing)
        raise ValueError(f"the model card of {folder} lacks {' and '.join(card.missing)}; give {given}")
    if card.problems:
        raise ValueError(f"the model card of {folder} must be mended: {'; '.join(card.problems)}")


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _complaint(card: Card) -> str | None:
    """What the Hub has against a card."""
    try:
        ModelCard(card.text).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def _existing(api: HfApi, repo: str) -> ModelInfo | None:
    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _check_existing(found: ModelInfo, title: str, parcel: Parcel, private: bool, confirm: Confirmation) -> None:
    """Ask before a repo is overwritten that is not as this program left it; `title` is its last commit's."""
    if found.id != parcel.repo:
        raise ValueError(f"{parcel.repo} is called {found.id} now; upload to that name")
    if private and not found.private:
        raise ValueError(f"{parcel.repo} is there already and public; make it private on the Hub, or name another repo")
    theirs, ours = names(found.card_data and found.card_data.get("base_model")), names(parcel.card.data["base_model"])
    files = {file.rfilename for file in found.siblings or ()} - _HUB_FILES
    reasons = []
    if theirs and set(theirs) != set(ours):
        reasons.append(f"is for {' and '.join(theirs)}, this adapter for {' and '.join(ours)}")
    if files and CONFIG_FILE not in files:
        reasons.append(f"holds no δ-mem adapter ({', '.join(sorted(files)[:3])})")
    elif files and title != _TITLE:
        reasons.append(f'was changed on the Hub ("{title}")')
    if reasons and not confirm(f"{parcel.repo} {' and '.join(reasons)}; upload all the same?"):
        raise ValueError(f"{parcel.repo} {' and '.join(reasons)}; name another repo, or give --yes to overwrite it")


def _keep_card(parcel: Parcel) -> None:
    """Write the card into the folder, unless somebody else did meanwhile or the folder is a cache's."""
    path = parcel.folder / CARD_FILE
    with suppress(OSError):
        if not path.is_symlink() and _content(path) == parcel.old_card:
            write_card(parcel.folder, parcel.card)


def _ask(question: str) -> bool:
    try:
        return sys.stdin.isatty() and Confirm.ask(escape(question), default=False)
    except EOFError:
        return False


def _show(parcel: Parcel, console: Console) -> None:
    adapter = parcel.adapter
    size = f"{adapter.parameters:,} parameters in {len(adapter.weights_by_layer())} layers, all finite"
    console.print(f"{parcel.folder}: {size}")
    table = Table(f"goes to {parcel.repo}", "size")
    table.columns[1].justify = "right"
    for name, content in parcel.contents.items():
        table.add_row(escape(name), decimal(len(content)))
    table.add_section()
    table.add_row("in all", decimal(sum(map(len, parcel.contents.values()))))
    console.print(table)
    if told := {name: value for name, value in adapter.metadata.items() if name not in ("format", "mlx_deltamem")}:
        console.print("The weights' file says: " + ", ".join(f"{name} {value}" for name, value in told.items()))
    if parcel.card.kept:
        console.print(f"Edited by hand in {CARD_FILE} and left as it is: {', '.join(parcel.card.kept)}")
    if parcel.left_out:
        console.print(f"Left out: {', '.join(parcel.left_out)}")


if __name__ == "__main__":
    main()
