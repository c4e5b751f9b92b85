"""Publish an adapter on the Hugging Face Hub: check its folder, collect the files, and send them in one commit.

Only regular files in the folder itself are read and sent: a link could lead to any file of this machine.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from mlx_deltamem.adapters.card.card import Card, make_card, names
from mlx_deltamem.adapters.card.folder import load_with_card, write_card
from mlx_deltamem.adapters.card.metadata import MOST_CARD_BYTES
from mlx_deltamem.adapters.card.sections import MOST_RESULTS_BYTES, shown_pictures
from mlx_deltamem.adapters.folder import NPZ_FILE, PLAIN_FILE, TORCH_FILE
from mlx_deltamem.adapters.hub import find_adapter, is_repo_name
from mlx_deltamem.adapters.hub_errors import upload_errors
from mlx_deltamem.adapters.names import PLACES
from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.core.adapter import (
    CARD_FILE,
    CURVES_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    Adapter,
)
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.files.regular import checked_files, read_within
from mlx_deltamem.files.yaml_text import parse_yaml

# The title of this program's commits: a repo with another last title was changed by somebody else.
_TITLE = "Upload a δ-mem adapter with mlx_deltamem"
# The Hub itself adds these files to a new repo.
_HUB_FILES = {".gitattributes"}

_MOST_WEIGHTS = 4 << 30
_MOST_PICTURE, _MOST_PICTURES = 16 << 20, 64
_MOST_PROBLEM = 300
# All files that are read or sent, the pictures of the card apart, and the largest size of each in bytes.
_MOST_BYTES = {
    CARD_FILE: MOST_CARD_BYTES,
    CONFIG_FILE: 1 << 20,
    WEIGHTS_FILE: _MOST_WEIGHTS,
    TORCH_FILE: _MOST_WEIGHTS,
    NPZ_FILE: _MOST_WEIGHTS,
    PLAIN_FILE: _MOST_WEIGHTS,
    RESULTS_FILE: MOST_RESULTS_BYTES,
    METRICS_FILE: 64 << 20,
    SETTINGS_FILE: 1 << 20,
    CURVES_FILE: _MOST_PICTURE,
}

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
    """Check an adapter's folder and read the files to upload. Nothing outside the folder is read.

    Args:
        folder: The adapter's folder.
        repo: The Hub repo (USER/NAME) to upload to.
        base_model, licence: New values for the card; None keeps those on the card.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks files.
        ValueError: The adapter is damaged or not complete, or its card lacks something; a file is a link, a pipe, a
            socket or a device, or is too large; or a file was changed while the files were read.
        OSError: A file cannot be read.
    """
    check_names(repo, base_model)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected an adapter's folder")
    store = _store(folder)
    stamps = checked_files(folder, _MOST_BYTES, store)
    adapter = load_with_card(folder)
    if adapter.file != WEIGHTS_FILE or WEIGHTS_FILE not in stamps:
        raise ValueError(
            f"{folder} does not hold {WEIGHTS_FILE}; convert it with mlx_deltamem.convert and upload the result"
        )
    old_card = read_within(folder, CARD_FILE, MOST_CARD_BYTES, store) if CARD_FILE in stamps else None
    card = make_card(folder, adapter, repo, base_model, licence)
    _check_card(folder, card)
    files = [CONFIG_FILE, WEIGHTS_FILE, *([RESULTS_FILE] if RESULTS_FILE in stamps else [])]
    contents = {name: read_within(folder, name, _MOST_BYTES[name], store) for name in files}
    contents = {CARD_FILE: card.text.encode()} | contents | _pictures(folder, card.text, store)
    if "trained" in adapter.metadata:
        contents |= published_run(folder)
    # The card and the adapter were read before the contents, and must be of the same files.
    if checked_files(folder, _MOST_BYTES, store) != stamps:
        raise ValueError(f"{folder} was changed while its files were read; upload it when nothing writes there")
    left_out = _left_out(folder, contents)
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
        ValueError: The file of options is damaged, or one of the files is a link or no regular file, or too large.
    """
    store = _store(folder)
    found = checked_files(folder, {name: _MOST_BYTES[name] for name in (SETTINGS_FILE, METRICS_FILE)}, store)
    contents = {name: read_within(folder, name, _MOST_BYTES[name], store) for name in found}
    if SETTINGS_FILE in contents:
        contents[SETTINGS_FILE] = _without_paths(contents[SETTINGS_FILE], folder / SETTINGS_FILE)
    return contents


def public_name(place: str) -> str:
    """Return the name of a model, data set or adapter that may be published: a repo's name, or a path's last part."""
    return place if is_repo_name(place) and not Path(place).exists() else Path(place).name


def _store(folder: Path) -> Path | None:
    """Return the folder in which the Hub's cache keeps the files of a downloaded repo; None for any other folder."""
    return folder.resolve().parent.parent / "blobs" if find_adapter(folder).repo is not None else None


def _left_out(folder: Path, contents: Mapping[str, bytes]) -> list[str]:
    """Return the names of what is not sent. Of a folder with pictures that are sent, these are its other entries."""
    sent = {Path(name) for name in contents}
    opened = {Path(), *(parent for name in sent for parent in name.parents)}
    entries = (path.relative_to(folder) for each in opened for path in (folder / each).iterdir())
    return sorted(entry.as_posix() for entry in entries if entry not in sent and entry not in opened)


def _pictures(folder: Path, card: str, store: Path | None) -> dict[str, bytes]:
    """Return the pictures that a card shows, by their names."""
    shown_names = shown_pictures(folder, card)
    if (count := len(shown_names)) > _MOST_PICTURES:
        raise ValueError(f"the model card of {folder} shows {count} pictures; expected {_MOST_PICTURES} at most")
    return {name: read_within(folder, name, _MOST_PICTURE, store) for name in shown_names}


def _without_paths(content: bytes, path: Path) -> bytes:
    """Return the options of a run with the names of its folders only; `path` is for errors."""
    try:
        options = parse_yaml(content.decode())
        if not isinstance(options, dict) or any(not isinstance(name, str) for name in options):
            raise ValueError("expected lines like `batch_size: 4`")
        for name in PLACES:
            if place := options.get(name):
                if not isinstance(place, str):
                    raise ValueError(f"{name} is no text")
                options[name] = public_name(place)
    except ValueError as error:
        problem = shown(" ".join(str(error).split()), _MOST_PROBLEM)
        raise ValueError(f"{path} is damaged ({problem}); expected the options of a run, or no such file") from None
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode()


def _check_card(folder: Path, card: Card) -> None:
    if card.missing:
        options = {"base_model": "--base-model USER/NAME", "license": "--license NAME (for instance mit)"}
        given = " and ".join(options[name] for name in card.missing)
        raise ValueError(f"the model card of {folder} lacks {' and '.join(card.missing)}; give {given}")
    if card.problems:
        raise ValueError(f"the model card of {folder} must be corrected: {'; '.join(card.problems)}")


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
    with suppress(OSError, ValueError):
        try:
            found = read_within(parcel.folder, CARD_FILE, MOST_CARD_BYTES)
        except FileNotFoundError:
            found = None
        if found == parcel.old_card:
            write_card(parcel.folder, parcel.card)
