"""The choice of the engine: fused kernels on a GPU where they work, MLX's own operations everywhere else."""

import functools

import mlx.core as mx

from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels.build import on_gpu
from mlx_deltamem.recurrence.ops import OpsEngine
from mlx_deltamem.recurrence.variant import Variant

Engine = OpsEngine | FusedEngine

ops_engine = functools.cache(OpsEngine)


def engine_for(variant: Variant, dtype: mx.Dtype, training: bool, masked: bool = False) -> Engine:
    """Choose the engine for one pass of one layer.

    Args:
        variant: The adapter's variant of the recurrence.
        dtype: The dtype of the tokens' projections.
        training: Whether gradients will be taken; they are cheaper with `OpsEngine`.
        masked: Whether the pass has a mask of padding. The kernels for masked tokens are tried out separately.
    """
    if training or not on_gpu():
        return ops_engine(variant, training)
    return _fused_engine(variant, dtype, masked) or ops_engine(variant, training)


@functools.cache
def _fused_engine(variant: Variant, dtype: mx.Dtype, masked: bool) -> FusedEngine | None:
    """The fused engine, or None where there is no kernel for the dtype and rank or the kernels do not work."""
    engine = FusedEngine(variant)
    return engine if engine.supports(dtype) and engine.works(dtype, masked) else None
