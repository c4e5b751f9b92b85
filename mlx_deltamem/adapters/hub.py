"""Find an adapter by name: a folder on this machine, or a repo on the Hugging Face Hub."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.files.atomic import user_path

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SNAPSHOT = re.compile(r"models--(?P<user>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/[0-9a-f]{40}")
_FILES = ["delta_mem*", "adapter.safetensors", "README.md"]


@dataclass(frozen=True)
class AdapterFolder:
    """The folder of an adapter on this machine.

    Attributes:
        path: The folder.
        name: The folder or repo as the user named it, for errors.
        repo: The Hub repo (USER/NAME) that the folder was downloaded from; None for any other folder.
    """

    path: Path
    name: str
    repo: str | None = None

    @property
    def source(self) -> str | None:
        """`USER/NAME@COMMIT`; None if the folder is not from the Hub."""
        return self.repo and f"{self.repo}@{self.path.name}"

    @property
    def converted(self) -> Path | None:
        """The place of the copy in our format, beside the Hub's cache; None if the folder is not from the Hub."""
        if self.repo is None:
            return None
        return Path(constants.HF_HOME) / "mlx_deltamem" / f"models--{self.repo.replace('/', '--')}" / self.path.name

    def listing(self) -> list[str]:
        """Return the names of the folder's files; for a repo, all of its files if the Hub can be reached."""
        if self.repo is not None:
            with suppress(OSError, ValueError), hub_errors(self.repo):
                return sorted(HfApi().list_repo_files(self.repo, revision=self.path.name))
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []


def find_adapter(name: str | Path) -> AdapterFolder:
    """Return the folder of an adapter; `USER/NAME` and `USER/NAME@REVISION` are downloaded from the Hub.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: The name is that of a file, or the Hub refused access.
    """
    folder = user_path(name)
    if folder.is_dir():
        repo = _cached_repo(folder)
        # The name of the real folder is the commit.
        return AdapterFolder(folder.resolve() if repo else folder, str(name), repo)
    if folder.exists():
        raise ValueError(f"{name} is a file; expected the folder of an adapter")
    match = _REPO.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(f"there is no folder {name}; expected an adapter's folder or a Hub repo (USER/NAME)")
    repo = match["repo"]
    with hub_errors(str(name)):
        try:
            snapshot = snapshot_download(repo, revision=match["revision"], allow_patterns=_FILES)
            return AdapterFolder(Path(snapshot), str(name), repo)
        except RepositoryNotFoundError:
            if kind := _other_kind(repo):
                raise FileNotFoundError(f"{repo} is a {kind} on the Hub, not an adapter") from None
            raise


def _cached_repo(folder: Path) -> str | None:
    """Return the repo of a folder in the Hub's cache; None if the folder is elsewhere."""
    cache, folder = Path(constants.HF_HUB_CACHE).resolve(), folder.resolve()
    if not folder.is_relative_to(cache):
        return None
    match = _SNAPSHOT.fullmatch(folder.relative_to(cache).as_posix())
    return match and f"{match['user']}/{match['name']}"


def is_repo_name(name: str) -> bool:
    """Return whether a name has the form of a Hub repo, `USER/NAME`."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name
    return False


def _other_kind(repo: str) -> str | None:
    """Return "dataset" or "space" if the Hub has a repo of that kind under this name."""
    for kind in ("dataset", "space"):
        # The answer only improves an error, so that a failure here is not reported.
        with suppress(HfHubHTTPError):
            if HfApi().repo_exists(repo, repo_type=kind):
                return kind
    return None
