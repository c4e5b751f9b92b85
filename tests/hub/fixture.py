"""Tests in this process against the loopback Hub: huggingface_hub, already imported, is pointed at it.

A test module takes the fixture with `from tests import hub_fixture` and `hub = hub_fixture.hub`.
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
    """Let huggingface_hub use this Hub, with its cache below `home`, as if it had been imported so.

    What it read from the environment at import is replaced wherever it kept it. It does not sleep between retries; the
    seconds that it would have slept are in the list that this gives. May be nested: for a second, fresh cache, another
    token or none, or offline.
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
    """Replace the Hub's address, which the module's functions, its URLs and its list of trusted hosts each keep."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(hf_api.api, "endpoint", endpoint)
    patch.setattr(hf_api.api, "_whoami_cache", {})
    patch.setattr(_http, "_HUB_ORIGINS", frozenset({_http._url_origin(endpoint)}))


def _settle(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Replace the places on the disk: the cache, and where a token would be stored."""
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(_cache_manager, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    patch.setattr(constants, "HF_XET_CACHE", str(home / "xet"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A loopback Hub that huggingface_hub uses, in this process too, with an empty cache and a token that may write."""
    with Hub() as running, using(running, tmp_path / "huggingface") as running.slept:
        yield running
