"""Which engine runs the memory: fused kernels on a GPU that they work on, MLX's own operations everywhere else."""

import functools

import mlx.core as mx

from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.gates import Variant
from mlx_deltamem.recurrence.kernels.build import on_gpu
from mlx_deltamem.recurrence.ops import OpsEngine

Engine = OpsEngine | FusedEngine

ops_engine = functools.cache(OpsEngine)


def engine_for(variant: Variant, dtype: mx.Dtype, training: bool, masked: bool = False) -> Engine:
    """The engine for what is computed now.

    Args:
        variant: What the adapter's configuration asks for.
        dtype: Of the tokens' projections.
        training: Whether gradients are to be taken, which are cheaper from operations.
        masked: Whether some tokens may be padding.
    """
    if training or not on_gpu():
        return ops_engine(variant)
    return _fused_engine(variant, dtype, masked) or ops_engine(variant)


@functools.cache
def _fused_engine(variant: Variant, dtype: mx.Dtype, masked: bool) -> FusedEngine | None:
    """The fused engine, if it can be used."""
    engine = FusedEngine(variant)
    return engine if engine.supports(dtype) and engine.works(dtype, masked) else None
