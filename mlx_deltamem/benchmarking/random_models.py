"""Models with random weights, of the shapes in `shapes`. They are as fast as the real models and need no download."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3

from mlx_deltamem.benchmarking.shapes import SHAPES

# Weights that share a scale when they are quantised; the default of mlx-lm.
GROUP_SIZE = 64


def random_model(shape: str, dtype: mx.Dtype, bits: int | None = None) -> nn.Module:
    """Make a model of mlx-lm with random weights. Its text is nonsense and its speed is real.

    The weights are made layer by layer, so that at most one layer is in memory in float32.

    Args:
        shape: One of `SHAPES`.
        dtype: The dtype of the weights, or of their scales if they are quantised.
        bits: Quantise to this many bits, in groups of 64 as mlx-lm does; None: do not quantise.
    """
    model = qwen3.Model(qwen3.ModelArgs.from_dict(SHAPES[shape]))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, GROUP_SIZE, bits)
    model.eval()
    for part in (*model.layers, model):
        mx.eval(part.parameters())
    return model
