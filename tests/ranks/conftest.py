from pathlib import Path

import mlx_lm
import pytest

from tests.ranks.models import make_adapter, make_model


@pytest.fixture(scope="session")
def options(tmp_path_factory) -> list[object]:
    """The options that name a model and an adapter."""
    folder: Path = tmp_path_factory.mktemp("llama")
    model = make_model(folder / "model", "llama")
    adapter = make_adapter(folder / "adapter", mlx_lm.load(str(model))[0], rank=4, delta_heads=("q", "o"))
    return ["--model", model, "--adapter", adapter]
