"""A start for adapters that are to repeat what they were told: what is read goes back to where it came from."""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attached_attention, attachment_of


def tie_output(model: nn.Module) -> None:
    """Make the output's correction head the transpose of the value projection, times the adapter's `online_gain`.

    A layer's value projection becomes a random one whose rows have norm 1 on average. A value that was written whole is
    then read back as its own projection onto these rows: from the first step on, a reply leans towards what was
    written, and training has to find when and how much, not in which directions.

    Raises:
        ValueError: The model has no adapter, or one that does not correct the output.
    """
    config = attachment_of(model).config
    if "o" not in config.delta_heads:
        raise ValueError(f"delta_heads are {' '.join(config.delta_heads) or 'none'}; --tie-output needs o among them")
    for attention in attached_attention(model).values():
        layer_memory: DeltaMemory = attention.delta_mem
        width, hidden = layer_memory.memory_v_proj.shape
        if layer_memory.delta_o_proj.shape[0] != hidden:
            wide = layer_memory.delta_o_proj.shape[0]
            raise ValueError(f"the output is {wide} wide and the input {hidden}; leave out --tie-output")
        values = mx.random.normal((width, hidden)) / math.sqrt(hidden)
        layer_memory.memory_v_proj = values
        layer_memory.delta_o_proj = values.T * config.online_gain
        mx.eval(layer_memory.parameters())
