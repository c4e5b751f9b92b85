"""Adapters by name: a folder on this machine, or a repo on the Hugging Face Hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ["delta_mem*", "adapter_config.json", "README.md"]


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the Hub and its client say into one line each.

    Raises:
        FileNotFoundError: There is no such repo or revision, or it is not here and the Hub cannot be reached.
        ValueError: Access was refused, or the name is no repo's name.
    """
    try:
        yield
    except HFValidationError:
        raise FileNotFoundError(f"{name} is no folder on this machine and no name of a Hub repo (USER/NAME)") from None
    except GatedRepoError:
        raise ValueError(f"{name} is gated: accept its terms on the Hub and log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{name} is a repo on the Hub that has no such revision") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name} is no folder on this machine and no repo on the Hub (if it is private, log in: `hf auth login`)"
        ) from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{name} is no folder on this machine, and the Hub could not be reached to look for such a repo"
        ) from None
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refused {name}: {str(error).splitlines()[0]}") from None


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter, downloaded if it is `USER/NAME` or `USER/NAME@REVISION` on the Hub.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: It is a file, or the Hub refused access.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{name} is a file; expected the folder of an adapter")
    match = _REPO.fullmatch(str(name))
    if match is None:
        raise FileNotFoundError(f"there is no folder {name}; expected an adapter's folder or a Hub repo (USER/NAME)")
    with hub_errors(str(name)):
        return Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=_FILES))


def conversion_folder(snapshot: Path) -> Path | None:
    """Where the converted copy of a downloaded repo is kept; None for a folder that is not from the Hub's cache."""
    cache = Path(constants.HF_HUB_CACHE).resolve()
    if not snapshot.resolve().is_relative_to(cache):
        return None
    repo = snapshot.resolve().relative_to(cache).parts[0]
    return Path(constants.HF_HOME) / "mlx_deltamem" / repo / snapshot.name
