"""Load a model from mlx-lm together with its memory."""

import json
from pathlib import Path

import mlx.nn as nn
import mlx_lm
from huggingface_hub import hf_hub_download
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as load_mlx_lm_tokenizer

from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.model import attach_adapter, check_detached
from mlx_deltamem.files.atomic import user_path

_CONFIG = "config.json"


def load(
    path_or_hf_repo: str | Path, adapter: str | Path | Adapter | None = None, **options: object
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a model and its tokenizer, and attach an adapter.

    Args:
        path_or_hf_repo: The model, as for `mlx_lm.load`.
        adapter: As for `attach`; None gives the frozen backbone.
        options: What else `mlx_lm.load` takes (`tokenizer_config`, `lazy`, `revision` ...).

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: The adapter does not fit the model, or one of them is damaged.
    """
    _check_folder(path_or_hf_repo)
    if isinstance(adapter, str | Path):
        adapter = load_adapter(adapter)
    with hub_errors(str(path_or_hf_repo)):
        model, tokenizer = mlx_lm.load(str(path_or_hf_repo), **options)[:2]
    # For the messages about chats that were made with another one, and for the card of an adapter that is trained.
    model.backbone_name = str(path_or_hf_repo)
    model.backbone_repo = name if is_repo_name(name := model.backbone_name) and not Path(name).exists() else None
    if adapter is not None:
        attach(model, adapter)
    return model, tokenizer


def attach(model: nn.Module, adapter: str | Path | Adapter | DeltaMemConfig) -> list[str]:
    """Attach a δ-mem adapter to a model from `mlx_lm.load`, in place.

    Args:
        model: The model; its own weights are neither changed nor copied.
        adapter: A folder or a Hub repo, an adapter already read, or a configuration for a fresh, untrained adapter.

    Returns:
        The names of the attention layers that have a memory now.

    Raises:
        FileNotFoundError: There is no such folder or repo.
        ValueError: The model has an adapter already, its attention is not supported, or the adapter does not fit; the
            message lists every problem, and the model is as it was.
    """
    check_detached(model)
    return attach_adapter(model, load_adapter(adapter) if isinstance(adapter, str | Path) else adapter)


def load_tokenizer(path_or_hf_repo: str | Path) -> TokenizerWrapper:
    """Load the tokenizer of a model from mlx-lm, without its weights.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is damaged, or the Hub does not give it.
    """
    _check_folder(path_or_hf_repo)
    with hub_errors(str(path_or_hf_repo)):
        return load_mlx_lm_tokenizer(str(path_or_hf_repo))


def load_model_type(path_or_hf_repo: str | Path) -> str:
    """Read the `model_type` (`qwen3`) from a model's config.json, without loading its weights; "" if there is none.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: Its config.json is damaged, or the Hub does not give it.
    """
    _check_folder(path_or_hf_repo)
    folder = user_path(path_or_hf_repo)
    with hub_errors(str(path_or_hf_repo)):
        path = folder / _CONFIG if folder.exists() else Path(hf_hub_download(str(path_or_hf_repo), _CONFIG))
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type", "")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged; expected an object of JSON with the model_type of a model") from None
    return found if isinstance(found, str) else ""


def _check_folder(path_or_hf_repo: str | Path) -> None:
    folder = user_path(path_or_hf_repo)
    if folder.exists() and not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no model: it has no {_CONFIG}; expected a model's folder or a Hub repo")
