"""Tests in this process against the loopback Hub: huggingface_hub, already imported, is redirected to it.

A test module gets the fixture with `from tests.hub import fixture` and `hub = fixture.hub`.
"""

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _cache_manager, _http

from tests.hub.server import TOKEN, Hub


@contextmanager
def using(hub: Hub, home: Path, *, token: str | None = TOKEN, offline: bool = False) -> Iterator[list[float]]:
    """Make huggingface_hub use this Hub, with its cache in `home`.

    At import huggingface_hub copies variables of the environment; all copies are replaced. It does not sleep between
    retries: the seconds are appended to the list that this yields. May be nested, for instance for a second cache.

    Args:
        hub: The running Hub.
        home: The folder for caches and tokens.
        token: The token to send; None for no token.
        offline: As with HF_HUB_OFFLINE=1.
    """
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        _point(patch, hub.endpoint)
        _settle(patch, home)
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(importlib.import_module("huggingface_hub.utils.tqdm"), "HF_HUB_DISABLE_PROGRESS_BARS", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        for module in (_http, file_download):
            patch.setattr(module, "time", SimpleNamespace(**vars(time) | {"sleep": slept.append}))
        _http.close_session()
        yield slept
        _http.close_session()


def _point(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Replace all copies of the Hub's address: in functions, in URLs and in the list of trusted hosts."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(hf_api.api, "endpoint", endpoint)
    patch.setattr(hf_api.api, "_whoami_cache", {})
    patch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(endpoint)}))


def _settle(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Replace the folders of the caches and the files of tokens."""
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(_cache_manager, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    patch.setattr(constants, "HF_XET_CACHE", str(home / "xet"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A loopback Hub that huggingface_hub uses in this process, with an empty cache and a token with write access."""
    with Hub() as running, using(running, tmp_path / "huggingface") as running.slept:
        yield running
