"""The frozen backbone and the same weights with a memory."""

import copy
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.benchmarking.paired import Sample
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.model import attach_adapter
from mlx_deltamem.core.use import read_only

FROZEN, FROZEN_AGAIN, DELTA_MEM, READ_ONLY = VARIANTS = ("frozen", "frozen_again", "delta_mem", "read_only")

# As the released adapter, but with weights that have an effect from the start.
FRESH_ADAPTER = DeltaMemConfig(rank=8, alpha=16.0, delta_heads=("q", "o"), output_init="random")


@dataclass(frozen=True)
class Models:
    """A backbone with and without a memory, on one set of weights.

    Attributes:
        frozen: The backbone; it is left alone.
        attached: Modules of its own around the same arrays, with a memory.
        adapter_bytes: What the memory's weights take, which lie in the same process beside the frozen backbone.
    """

    frozen: nn.Module
    attached: nn.Module
    adapter_bytes: int

    def run(self, variant: str, work: Callable[[nn.Module], Sample]) -> Sample:
        """Do some work with one of `VARIANTS`."""
        model = self.frozen if variant in (FROZEN, FROZEN_AGAIN) else self.attached
        with read_only(model) if variant == READ_ONLY else nullcontext():
            return work(model)


def with_and_without(model: nn.Module, adapter: str | DeltaMemConfig) -> Models:
    """Give a model a twin that has a memory.

    Args:
        model: A model without a memory; it is left as it is.
        adapter: A folder, a Hub repo, or a configuration for a fresh adapter.

    Raises:
        FileNotFoundError: There is no such adapter.
        ValueError: The adapter does not fit, or the model's attention is not supported.
    """
    mx.eval(model.parameters())
    # What is garbage now must not be freed between the two looks at the memory.
    gc.collect()
    before = mx.get_active_memory()
    # The arrays of a copy share their numbers with the original's.
    attached = copy.deepcopy(model)
    attach_adapter(attached, adapter)
    # The first call packs the adapter's weights.
    mx.eval(attached(mx.array([[0]])))
    return Models(model, attached, mx.get_active_memory() - before)
