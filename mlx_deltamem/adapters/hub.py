"""Adapters by name: a folder on this machine, or a repo on the Hugging Face Hub."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.files.atomic import user_path

# The reference implementation's adapter, by its authors; CC-BY-4.0 (facts of the reference).
REFERENCE_ADAPTER = "declare-lab/delta-mem_qwen3_4b-instruct"

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SNAPSHOT = re.compile(r"models--(?P<user>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/[0-9a-f]{40}")
_FILES = ["delta_mem*", "adapter.safetensors", "README.md"]


@dataclass(frozen=True)
class AdapterFolder:
    """Where an adapter's files are.

    Attributes:
        path: The folder.
        repo: The Hub repo (USER/NAME) it was downloaded from; None for a folder of the user's own.
    """

    path: Path
    repo: str | None = None

    @property
    def source(self) -> str | None:
        """`USER/NAME@COMMIT`, the very state of a repo; None for a folder of the user's own."""
        return self.repo and f"{self.repo}@{self.path.name}"

    @property
    def converted(self) -> Path | None:
        """Where the converted copy of a downloaded repo is kept; None for a folder of the user's own."""
        if self.repo is None:
            return None
        return Path(constants.HF_HOME) / "mlx_deltamem" / f"models--{self.repo.replace('/', '--')}" / self.path.name

    def listing(self) -> list[str]:
        """The files of the folder or, of a repo, also those that were not downloaded, as far as that is known."""
        if self.repo is not None:
            with suppress(OSError, ValueError), hub_errors(self.repo):
                return sorted(HfApi().list_repo_files(self.repo, revision=self.path.name))
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []


def find_adapter(name: str | Path) -> AdapterFolder:
    """The folder of an adapter, downloaded if it is `USER/NAME` or `USER/NAME@REVISION` on the Hub.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: It is a file, or the Hub refused access.
    """
    folder = user_path(name)
    if folder.is_dir():
        return AdapterFolder(folder, _cached_repo(folder))
    if folder.exists():
        raise ValueError(f"{name} is a file; expected the folder of an adapter")
    match = _REPO.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(f"there is no folder {name}; expected an adapter's folder or a Hub repo (USER/NAME)")
    repo = match["repo"]
    with hub_errors(str(name)):
        try:
            return AdapterFolder(Path(snapshot_download(repo, revision=match["revision"], allow_patterns=_FILES)), repo)
        except RepositoryNotFoundError:
            if kind := _other_kind(repo):
                raise FileNotFoundError(f"{repo} is a {kind} on the Hub, not an adapter") from None
            raise


def _cached_repo(folder: Path) -> str | None:
    """The repo of a folder that is a snapshot in the Hub's cache."""
    cache, folder = Path(constants.HF_HUB_CACHE).resolve(), folder.resolve()
    if not folder.is_relative_to(cache):
        return None
    match = _SNAPSHOT.fullmatch(folder.relative_to(cache).as_posix())
    return match and f"{match['user']}/{match['name']}"


def is_repo_name(name: str) -> bool:
    """Whether a name can be that of a Hub repo, USER/NAME."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return "/" in name
    return False


def _other_kind(repo: str) -> str | None:
    """What a repo is that is no model repo."""
    for kind in ("dataset", "space"):
        # This is for the message alone.
        with suppress(HfHubHTTPError):
            if HfApi().repo_exists(repo, repo_type=kind):
                return kind
    return None
