"""Build, on any machine, the graph of a decode step that a Mac would run, to count its primitives."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx

from mlx_deltamem.core import layer
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels import build


class _CountedError(Exception):
    """Ends the export once the graph is counted."""


def count_fused(count: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Call `count` while models build the graph with the fused kernels. The kernels do not run.

    Args:
        count: Builds a graph and returns the number of each primitive.

    Returns:
        The result of `count`.

    Raises:
        RuntimeError: This MLX cannot add kernels to a graph without a GPU.
    """
    counts: list[dict[str, float]] = []

    def function(x: mx.array) -> mx.array:
        counts.append(count())
        raise _CountedError

    # Without a GPU, MLX adds a kernel to a graph only while it exports a function.
    with _as_on_a_mac(), tempfile.TemporaryDirectory() as folder, suppress(_CountedError):
        mx.export_function(str(Path(folder) / "step.mlxfn"), function, mx.zeros(1))
    return counts[0]


@contextmanager
def _as_on_a_mac() -> Iterator[None]:
    build.launch.cache_clear()
    with (
        patch.object(build, "gpu_language", lambda: "metal"),
        patch.object(layer, "engine_for", lambda variant, *_, **__: FusedEngine(variant)),
    ):
        try:
            yield
        finally:
            build.launch.cache_clear()
