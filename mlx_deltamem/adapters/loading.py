"""Load a model of mlx-lm and attach an adapter to it."""

from pathlib import Path
from typing import TypedDict, Unpack

import mlx.nn as nn
import mlx_lm
from huggingface_hub import hf_hub_download
from mlx_lm.tokenizer_utils import TokenizerWrapper

# The download is that of mlx-lm, which a user can send to another place than the Hub.
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS, snapshot_download
from mlx_lm.utils import load_tokenizer as load_mlx_lm_tokenizer

from mlx_deltamem.adapters.checkpoint import check_checkpoint, check_dtypes, check_encodes, one_error
from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.adapters.json_file import read_json_object
from mlx_deltamem.adapters.model_config import CONFIG
from mlx_deltamem.adapters.tokenizer_files import check_tokenizer
from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.model import attach_adapter, check_detached
from mlx_deltamem.files.atomic import user_path


class LoadOptions(TypedDict, total=False):
    """The options of `mlx_lm.load` that `load` passes on."""

    tokenizer_config: dict[str, object]
    model_config: dict[str, object]
    adapter_path: str
    lazy: bool
    revision: str
    trust_remote_code: bool


def load(
    path_or_hf_repo: str | Path, adapter: str | Path | Adapter | None = None, **options: Unpack[LoadOptions]
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a model and its tokenizer, and attach an adapter to the model.

    Args:
        path_or_hf_repo: The model, as for `mlx_lm.load`: a folder or a Hub repo.
        adapter: A folder, a Hub repo or an adapter already read; None gives the frozen backbone.
        options: Options of `mlx_lm.load`.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: The adapter does not fit the model, or one of them is damaged.
    """
    check_folder(path_or_hf_repo)
    if isinstance(adapter, str | Path):
        adapter = load_adapter(adapter)
    folder = model_folder(path_or_hf_repo, options.get("revision"))
    overrides = options.get("model_config")
    check_checkpoint(folder, overrides)
    with one_error(folder, overrides):
        model, tokenizer = mlx_lm.load(str(folder), **options)[:2]
    check_dtypes(model, folder)
    check_encodes(tokenizer, folder)
    set_names(model, path_or_hf_repo)
    if adapter is not None:
        attach(model, adapter)
    return model, tokenizer


def attach(model: nn.Module, adapter: str | Path | Adapter | DeltaMemConfig) -> list[str]:
    """Attach a δ-mem adapter to a model of `mlx_lm.load`, in place.

    Args:
        model: The model; its own weights are neither changed nor copied.
        adapter: A folder or a Hub repo, an adapter already read, or a configuration for a new, untrained adapter.

    Returns:
        The names of the attention layers that have a memory.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: The model already has an adapter, its attention is not supported, or the adapter does not fit. The
            message lists every problem, and the model is unchanged.
    """
    check_detached(model)
    return attach_adapter(model, load_adapter(adapter) if isinstance(adapter, str | Path) else adapter)


def load_tokenizer(path_or_hf_repo: str | Path) -> TokenizerWrapper:
    """Load the tokenizer of a model, without the model's weights.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The tokenizer is damaged, or the Hub refused access.
    """
    check_folder(path_or_hf_repo)
    folder = model_folder(path_or_hf_repo, None, weights=False)
    if (folder / CONFIG).exists():
        read_json_object(folder / CONFIG)
    check_tokenizer(folder)
    with one_error(folder):
        tokenizer: TokenizerWrapper = load_mlx_lm_tokenizer(str(folder))
    check_encodes(tokenizer, folder)
    return tokenizer


def load_model_type(path_or_hf_repo: str | Path) -> str:
    """Read the `model_type` (for instance `qwen3`) from a model's config.json; "" if it has none.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The config.json is damaged, or the Hub refused access.
    """
    check_folder(path_or_hf_repo)
    folder = user_path(path_or_hf_repo)
    with hub_errors(str(path_or_hf_repo)):
        path = folder / CONFIG if folder.exists() else Path(hf_hub_download(str(path_or_hf_repo), CONFIG))
    found = read_json_object(path).get("model_type", "")
    return found if isinstance(found, str) else ""


def set_names(model: nn.Module, path_or_hf_repo: str | Path) -> None:
    """Keep the name of a model: for errors about chats of another model, and for the card of an adapter."""
    model.backbone_name = str(path_or_hf_repo)
    model.backbone_repo = name if is_repo_name(name := model.backbone_name) and not Path(name).exists() else None


def model_folder(path_or_hf_repo: str | Path, revision: str | None, weights: bool = True) -> Path:
    """The folder of a model. A Hub repo is downloaded first, as mlx-lm does it.

    Args:
        path_or_hf_repo: A folder or a Hub repo.
        revision: The revision of the repo; None: the main branch.
        weights: Whether the weights are needed.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: The Hub refused access.
    """
    folder = user_path(path_or_hf_repo)
    if folder.exists():
        return folder
    patterns = [pattern for pattern in DEFAULT_ALLOW_PATTERNS if weights or not pattern.endswith(".safetensors")]
    with hub_errors(str(path_or_hf_repo)):
        return Path(snapshot_download(str(path_or_hf_repo), revision=revision, allow_patterns=patterns))


def check_folder(path_or_hf_repo: str | Path) -> None:
    """Check that a folder, if there is one of this name, holds a model.

    Raises:
        FileNotFoundError: It does not.
    """
    folder = user_path(path_or_hf_repo)
    if folder.exists() and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not a model: it has no {CONFIG}; expected a model's folder or a Hub repo")
