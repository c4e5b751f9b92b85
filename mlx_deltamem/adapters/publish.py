"""Publish an adapter on the Hugging Face Hub: check its folder, collect the files, and send them in one commit."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from mlx_deltamem.adapters.card.card import Card, make_card, names
from mlx_deltamem.adapters.card.folder import load_with_card, write_card
from mlx_deltamem.adapters.card.sections import shown_pictures
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import upload_errors
from mlx_deltamem.core.adapter import CARD_FILE, METRICS_FILE, RESULTS_FILE, SETTINGS_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.core.config import CONFIG_FILE

# The options of a training run that name a folder or a repo.
PLACES = ("model", "data", "start")

# The title of this program's commits: a repo with another last title was changed by somebody else.
_TITLE = "Upload a δ-mem adapter with mlx_deltamem"
# The Hub itself adds these files to a new repo.
_HUB_FILES = {".gitattributes"}

Confirmation = Callable[[str], bool]


@dataclass(frozen=True)
class Parcel:
    """The files of an upload, checked, with their contents at the time of the check.

    Attributes:
        folder: The adapter's folder.
        repo: The Hub repo (USER/NAME) to upload to.
        adapter: The adapter in the folder.
        card: The model card as it is uploaded.
        old_card: The card in the folder; None if there is none.
        contents: The contents of the files by name.
        left_out: The names of the other files in the folder.
    """

    folder: Path
    repo: str
    adapter: Adapter
    card: Card
    old_card: bytes | None
    contents: dict[str, bytes]
    left_out: list[str]


def pack(folder: Path, repo: str, base_model: str | None = None, licence: str | None = None) -> Parcel:
    """Check an adapter's folder and read the files to upload.

    Args:
        folder: The adapter's folder.
        repo: The Hub repo (USER/NAME) to upload to.
        base_model, licence: New values for the card; None keeps those on the card.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks files.
        ValueError: The adapter is damaged or not complete, or its card lacks something.
        OSError: A file cannot be read.
    """
    check_names(repo, base_model)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected an adapter's folder")
    adapter = load_with_card(folder)
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
    """Send a parcel to the Hub in one commit, and keep its card in the folder.

    The Hub accepts either all files or none, so that an interrupted upload can be repeated.

    Args:
        parcel: From `pack`.
        private: Make the repo private if it is new.
        confirm: Called with a question before a repo is overwritten that is for another model, has other contents, or
            was changed on the Hub.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: The Hub refused something or could not be reached, or the repo may not be overwritten.
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
        # With the parent given, the Hub refuses the commit if the repo has changed since it was checked.
        parent = None if found is None else found.sha
        address = api.create_commit(repo, additions, commit_message=_TITLE, parent_commit=parent).commit_url
    _keep_card(parcel)
    return address


def check_names(repo: str, base_model: str | None = None) -> None:
    """Raise ValueError unless these can be the names of Hub repos."""
    for option, name in (("--upload-repo", repo), ("--base-model", base_model)):
        if name is not None and not is_repo_name(name):
            raise ValueError(f"{option} is {name}; expected the name of a Hub repo (USER/NAME)")


def published_run(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder's training run that may be published: its metrics, and its options without paths.

    Raises:
        ValueError: The file of options is damaged.
    """
    settings, metrics = folder / SETTINGS_FILE, folder / METRICS_FILE
    contents = {SETTINGS_FILE: _without_paths(settings)} if settings.is_file() else {}
    return contents | ({METRICS_FILE: metrics.read_bytes()} if metrics.is_file() else {})


def public_name(place: str) -> str:
    """Return the name of a model, data set or adapter that may be published: a repo's name, or a path's last part."""
    return place if is_repo_name(place) else Path(place).name


def _without_paths(path: Path) -> bytes:
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        options |= {name: public_name(options[name]) for name in PLACES if options.get(name)}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({problem}); expected the options of a run, or no such file") from None
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode()


def _check_card(folder: Path, card: Card) -> None:
    if card.missing:
        options = {"base_model": "--base-model USER/NAME", "license": "--license NAME (for instance mit)"}
        given = " and ".join(options[name] for name in card.missing)
        raise ValueError(f"the model card of {folder} lacks {' and '.join(card.missing)}; give {given}")
    if card.problems:
        raise ValueError(f"the model card of {folder} must be corrected: {'; '.join(card.problems)}")


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _complaint(card: Card) -> str | None:
    """Return the Hub's reason for refusing a card; None if it accepts the card."""
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
    """Ask before a repo is overwritten that is not as this program left it; `title` is that of its last commit."""
    if found.id != parcel.repo:
        raise ValueError(f"{parcel.repo} was renamed to {found.id}; upload to that name")
    if private and not found.private:
        raise ValueError(f"{parcel.repo} exists and is public; make it private on the Hub, or name another repo")
    theirs, ours = names(found.card_data and found.card_data.get("base_model")), names(parcel.card.data["base_model"])
    files = {file.rfilename for file in found.siblings or ()} - _HUB_FILES
    reasons = []
    if theirs and set(theirs) != set(ours):
        reasons.append(f"is for {' and '.join(theirs)}, this adapter for {' and '.join(ours)}")
    if files and CONFIG_FILE not in files:
        reasons.append(f"does not hold a δ-mem adapter ({', '.join(sorted(files)[:3])})")
    elif files and title != _TITLE:
        reasons.append(f'was changed on the Hub ("{title}")')
    if reasons and not confirm(f"{parcel.repo} {' and '.join(reasons)}; upload all the same?"):
        raise ValueError(f"{parcel.repo} {' and '.join(reasons)}; name another repo, or give --yes to overwrite it")


def _keep_card(parcel: Parcel) -> None:
    """Write the card into the folder, unless it was changed there since `pack` or belongs to the Hub's cache."""
    path = parcel.folder / CARD_FILE
    with suppress(OSError):
        if not path.is_symlink() and _content(path) == parcel.old_card:
            write_card(parcel.folder, parcel.card)
