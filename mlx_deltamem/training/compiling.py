"""Whether MLX compiles a training step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


def is_compiled() -> bool:
    """Whether MLX compiles the steps of a run, within `compiled_where_faster`."""
    return mx.default_device() == mx.gpu and "MLX_DISABLE_COMPILE" not in os.environ


@contextmanager
def compiled_where_faster() -> Iterator[None]:
    """Run the block with MLX's compilation on a GPU, and without it on a CPU.

    mlx-lm's trainer compiles its step. Batches have many shapes, and MLX traces and fuses a step again for each new
    one; on a CPU it also starts the C++ compiler for each new kernel. That takes longer than the fused kernels save:
    `.github/CONTRIBUTING.md` has figures.
    """
    if mx.default_device() == mx.gpu or "MLX_DISABLE_COMPILE" in os.environ:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
