import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# TF32 rounds the inputs of matrix products. On GPUs that have it, results would be too far from the golden data.
os.environ["MLX_ENABLE_TF32"] = "0"

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import settings

from tests.recurrence.host_kernels import kernels_on_host  # noqa: F401  (a fixture)

# A test says nothing about time: a machine may do other work.
settings.register_profile("without_time", deadline=None)
settings.load_profile("without_time")

REPO = Path(__file__).parents[1]
GOLDENS = REPO / "tests" / "goldens"


def golden(folder: str, name: str) -> tuple[dict, dict[str, mx.array]]:
    """Return the description and the tensors of a golden file."""
    path = GOLDENS / folder / f"{name}.json"
    return json.loads(path.read_text()), mx.load(str(path.with_suffix(".safetensors")))


def golden_names(folder: str) -> list[str]:
    return sorted(path.stem for path in (GOLDENS / folder).glob("*.json"))


def backbone(name: str = "qwen3-tiny") -> str:
    return str(GOLDENS / "backbones" / name)


def adapter(name: str = "qwen3_tsw_qo") -> str:
    return str(GOLDENS / "adapters" / name)


def distance(a: mx.array, b: mx.array) -> float:
    """Return the largest absolute difference. The shapes must be equal, so that nothing is broadcast."""
    assert a.shape == b.shape
    return mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item()


def randomise(model: nn.Module, scale: float = 0.3) -> None:
    """Set every adapter weight of an attached model to a random value, so that each has an effect."""
    for module in model.modules():
        layer_memory = module.get("delta_mem")
        if layer_memory is not None:
            for name, tensor in list(layer_memory.items()):
                layer_memory[name] = mx.random.normal(tensor.shape).astype(tensor.dtype) * scale


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Make Ctrl-C work as in a terminal, also in child processes. A process in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    mx.random.seed(0)
