from pathlib import Path

import mlx_lm
import pytest

from tests.ranks.models import make_adapter, make_model


def model_options(folder: Path, family: str) -> list[object]:
    """The options that name a model and an adapter, which are made in a folder."""
    model = make_model(folder / "model", family)
    adapter = make_adapter(folder / "adapter", mlx_lm.load(str(model))[0], rank=4, delta_heads=("q", "o"))
    return ["--model", model, "--adapter", adapter]


@pytest.fixture(scope="session")
def options(tmp_path_factory) -> list[object]:
    """The options that name a model and an adapter."""
    return model_options(tmp_path_factory.mktemp("llama"), "llama")
