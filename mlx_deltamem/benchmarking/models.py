"""The frozen backbone, and a copy with a memory that shares its weights."""

import copy
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.adapters.loading import attach
from mlx_deltamem.benchmarking.paired import Sample
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.spread import world_of
from mlx_deltamem.core.use import read_only

FROZEN, FROZEN_AGAIN, DELTA_MEM, READ_ONLY = VARIANTS = ("frozen", "frozen_again", "delta_mem", "read_only")

# The configuration of the released adapter, with random weights that have an effect at once.
FRESH_ADAPTER = DeltaMemConfig(rank=8, alpha=16.0, delta_heads=("q", "o"), output_init="random")


@dataclass(frozen=True)
class Models:
    """A backbone with and without a memory, on one set of weights.

    Attributes:
        frozen: The backbone, unchanged.
        attached: A copy of its modules with the same arrays and with a memory.
        adapter_bytes: The size of the adapter's weights, which are in the same process as the frozen backbone.
    """

    frozen: nn.Module
    attached: nn.Module
    adapter_bytes: int

    def run(self, variant: str, work: Callable[[nn.Module], Sample]) -> Sample:
        """Measure some work with one of `VARIANTS`."""
        model = self.frozen if variant in (FROZEN, FROZEN_AGAIN) else self.attached
        with read_only(model) if variant == READ_ONLY else nullcontext():
            return work(model)


def with_and_without(model: nn.Module, adapter: str | DeltaMemConfig) -> Models:
    """Make a copy of a model with a memory.

    Args:
        model: A model without a memory. It is not changed.
        adapter: A folder, a Hub repo, or a configuration for a fresh adapter.

    Raises:
        FileNotFoundError: The adapter does not exist.
        ValueError: The adapter does not fit, or the model's attention is not supported.
    """
    mx.eval(model.parameters())
    # Garbage must not be freed between the two measurements of the memory.
    gc.collect()
    before = mx.get_active_memory()
    # A deep copy shares the buffers of its arrays with the original. MLX's group of the ranks cannot be copied.
    group = world_of(model).group
    attached = copy.deepcopy(model, {id(group): group})
    attach(attached, adapter)
    # The first call packs the adapter's weights.
    mx.eval(attached(mx.array([[0]])))
    return Models(model, attached, mx.get_active_memory() - before)
