"""Load a model from mlx-lm together with its memory."""

import json
from pathlib import Path

import mlx.nn as nn
import mlx_lm
from huggingface_hub import hf_hub_download
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as load_mlx_lm_tokenizer

from mlx_deltamem.adapter import Adapter
from mlx_deltamem.adapter_folder import load_adapter
from mlx_deltamem.attach import attach
from mlx_deltamem.files import user_path
from mlx_deltamem.hub_errors import hub_errors

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
    # For the messages about chats that were made with another one.
    model.backbone_name = str(path_or_hf_repo)
    if adapter is not None:
        attach(model, adapter)
    return model, tokenizer


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
