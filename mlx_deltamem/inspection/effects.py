"""Which parts of an adapter cannot have an effect, since numbers that everything must pass through are zero."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.config import DeltaMemConfig


def idle_state_heads(config: DeltaMemConfig, tensors: Mapping[str, mx.array]) -> list[int]:
    """The state heads of a layer that never correct anything, whatever is written.

    A state head is idle where its memory queries, keys or values are always zero, or what is read from it meets only
    zeros in the corrections that are in use.

    Args:
        config: The adapter's configuration.
        tensors: The layer's tensors by name.
    """
    inputs = [_any_by_head(config, tensors[f"memory_{name}_proj"], axis=0) for name in "qkv"]
    corrections = [_any_by_head(config, tensors[f"delta_{head}_proj"], axis=1) for head in _live_heads(config, tensors)]
    live = np.logical_and.reduce(inputs) & np.logical_or.reduce([np.zeros(config.num_state_heads, bool), *corrections])
    return [head for head in range(config.num_state_heads) if not live[head]]


def _live_heads(config: DeltaMemConfig, tensors: Mapping[str, mx.array]) -> list[str]:
    """The correction heads whose output reaches the backbone."""
    if config.alpha == 0:
        return []
    if config.delta_o_rmsnorm and not tensors["delta_o_rmsnorm_weight"].any().item():
        return [head for head in config.delta_heads if head != "o"]
    return list(config.delta_heads)


def _any_by_head(config: DeltaMemConfig, tensor: mx.array, axis: int) -> np.ndarray:
    """`[H]` bool: for which state heads a tensor whose `axis` is of width H * r has numbers other than zero."""
    used = np.array((tensor != 0).any(axis=1 - axis))
    return used.reshape(config.num_state_heads, config.rank).any(axis=1)
