"""The graph that a Mac would run, built on any machine, to count what the fused path adds to a decode step."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx

from mlx_deltamem.recurrence import engines
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels import build


class _CountedError(Exception):
    """Ends an export whose graph was counted."""


def count_fused(count: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Count in the graph of the fused path; its kernels are not run.

    Raises:
        RuntimeError: This MLX adds no kernels to a graph without a GPU.
    """
    counts = []

    def function(x: mx.array) -> mx.array:
        counts.append(count())
        raise _CountedError

    # Without a GPU, MLX adds kernels to graphs while it exports a function.
    with _as_on_a_mac(), tempfile.TemporaryDirectory() as folder, suppress(_CountedError):
        mx.export_function(str(Path(folder) / "step.mlxfn"), function, mx.zeros(1))
    return counts[0]


@contextmanager
def _as_on_a_mac() -> Iterator[None]:
    build.launch.cache_clear()
    with (
        patch.object(build, "gpu_language", lambda: "metal"),
        patch.object(engines, "on_gpu", lambda: True),
        patch.object(engines, "_fused_engine", lambda variant, *_: FusedEngine(variant)),
    ):
        try:
            yield
        finally:
            build.launch.cache_clear()
