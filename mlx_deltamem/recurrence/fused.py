"""The engine that runs a layer's memory with fused kernels on a GPU."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx

from mlx_deltamem.recurrence.custom_gradient import custom_gradient
from mlx_deltamem.recurrence.kernels import launch
from mlx_deltamem.recurrence.kernels.build import LARGEST_RANK
from mlx_deltamem.recurrence.kernels.trial import trial
from mlx_deltamem.recurrence.ops import OpsEngine
from mlx_deltamem.recurrence.variant import Variant

# Sequences of at least this many tokens are cut into chunks that run side by side.
_FEWEST_TOKENS = 64
# The map of a chunk is r + 1 times as large as a state. For larger ranks, a loop over all tokens is faster.
_LARGEST_CHUNKED_RANK = 16

# Small, so that the mask of one token has fewer than 8 numbers: Metal passes such arrays in another way.
_TRIAL_BATCH = 2

_DTYPES = (mx.float32, mx.bfloat16, mx.float16)

R = TypeVar("R")


@dataclass(frozen=True)
class FusedEngine:
    """Reads and writes states as `OpsEngine` does, in one kernel, or in three for long sequences.

    For more than one token, it has gradients: it runs `OpsEngine` to take them. For one token it has none, because
    preparing for them would cost more than the token itself; MLX raises a ValueError if a gradient is taken.
    """

    variant: Variant

    def supports(self, dtype: mx.Dtype) -> bool:
        """Whether there is a kernel for projections of this dtype."""
        return self.variant.rank <= LARGEST_RANK and dtype in _DTYPES

    def works(self, dtype: mx.Dtype, masked: bool) -> bool:
        """Try the kernels for projections of this dtype, and warn if they cannot be used.

        `masked` selects the kernels to try: those that take a mask or those that do not.
        """
        variant, ops = self.variant, OpsEngine(self.variant)
        chunked = variant.rank <= _LARGEST_CHUNKED_RANK
        keys = mx.random.split(mx.random.key(0), 3)
        # Small numbers, because a state that is written with keys that are not normalised may grow without bounds.
        shape = (_TRIAL_BATCH, _FEWEST_TOKENS + 1, variant.columns)
        projected = mx.random.normal(shape, scale=0.1, key=keys[0]).astype(dtype)
        bias = mx.random.normal((variant.columns - 3 * variant.width,), key=keys[1])
        state = mx.random.normal((_TRIAL_BATCH, variant.heads, variant.rank, variant.rank), key=keys[2])
        mask = mx.arange(shape[1]) != mx.arange(_TRIAL_BATCH)[:, None] if masked else None
        inputs = [(projected, mask), (projected[:, :1], None if mask is None else mask[:, :1])]

        def fused() -> list[mx.array]:
            results: list[mx.array] = []
            for x, seen in inputs:
                results += [*launch.scan(variant, x, bias, state, seen), launch.read(variant, x, state, seen)]
                results += launch.chunked_scan(variant, x, bias, state, seen) if chunked else ()
            return results

        def expected() -> list[mx.array]:
            results: list[mx.array] = []
            for x, seen in inputs:
                scanned = ops.scan(x, bias, state, seen)
                results += [*scanned, ops.read(x, state, seen), *(scanned if chunked else ())]
            return results

        return trial.passes(fused, expected, tolerance=1e-3 if dtype == mx.float32 else 3e-2)

    def scan(
        self, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Read and write the state with each token; arguments and results are those of `OpsEngine.scan`."""
        if projected.size == 0:
            return self._no_reads(projected), state
        if projected.shape[1] == 1:
            return launch.scan(self.variant, projected, gate_bias, state, mask)
        return _differentiable_scan(self.variant)(projected, gate_bias, state, *_if_any(mask))

    def read(self, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
        """Read the state with each token and leave it as it is; arguments and result are those of `OpsEngine.read`."""
        if projected.size == 0:
            return self._no_reads(projected)
        if projected.shape[1] == 1:
            return launch.read(self.variant, projected, state, mask)
        return _differentiable_read(self.variant)(projected, state, *_if_any(mask))

    def _no_reads(self, projected: mx.array) -> mx.array:
        return mx.zeros((*projected.shape[:2], self.variant.width), projected.dtype)


def _if_any(mask: mx.array | None) -> list[mx.array]:
    # The arguments of a custom function must be arrays.
    return [] if mask is None else [mask]


@functools.cache
def _differentiable_scan(variant: Variant) -> Callable[..., tuple[mx.array, mx.array]]:
    return _with_gradient(functools.partial(_long_scan, variant), OpsEngine(variant).scan, floats=3)


@functools.cache
def _differentiable_read(variant: Variant) -> Callable[..., mx.array]:
    return _with_gradient(functools.partial(launch.read, variant), OpsEngine(variant).read, floats=2)


def _with_gradient(fused: Callable[..., R], ops: Callable[..., R], floats: int) -> Callable[..., R]:
    """`fused` with the gradient of `ops` in the first `floats` arguments; one more argument may be a mask."""

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array] | mx.array, _: object
    ) -> tuple[mx.array, ...]:
        mask = primals[floats:]
        of_outputs = [cotangents] if isinstance(cotangents, mx.array) else list(cotangents)
        _, gradients = mx.vjp(lambda *arrays: ops(*arrays, *mask), list(primals[:floats]), of_outputs)
        return (*gradients, *(mx.zeros_like(x) for x in mask))

    return custom_gradient(gradient)(fused)


def _long_scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    if projected.shape[1] < _FEWEST_TOKENS or variant.rank > _LARGEST_CHUNKED_RANK:
        return launch.scan(variant, projected, gate_bias, state, mask)
    return launch.chunked_scan(variant, projected, gate_bias, state, mask)
