"""The memory of one layer over a stretch of tokens, as fused kernels on a GPU."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.recurrence.gates import Variant
from mlx_deltamem.recurrence.kernels import launch
from mlx_deltamem.recurrence.kernels.build import LARGEST_RANK
from mlx_deltamem.recurrence.kernels.trial import trial
from mlx_deltamem.recurrence.ops import OpsEngine

# From this many tokens on they are cut into chunks that run side by side.
_FEWEST_TOKENS = 64
# What a chunk makes of a state is r + 1 times as large as the state, so with more rows one token after the other is
# better.
_LARGEST_CHUNKED_RANK = 16

# Metal passes arrays of fewer than 8 numbers in another way, as the mask of one token is.
_TRIAL_BATCH = 2

_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


@dataclass(frozen=True)
class FusedEngine:
    """Reads and writes states as `OpsEngine` does, in one kernel, or three for long stretches of tokens.

    For more than one token, gradients are those of `OpsEngine`, which is run for them. For one token, where that would
    cost more than the token does, there are none, and MLX raises a ValueError.
    """

    variant: Variant

    def supports(self, dtype: mx.Dtype) -> bool:
        """Whether there is a kernel for projections of this dtype."""
        return self.variant.rank <= LARGEST_RANK and dtype in _DTYPES

    def works(self, dtype: mx.Dtype, masked: bool) -> bool:
        """Try the kernels out for projections of this dtype; a warning says if they cannot be used.

        With a mask they are other kernels.
        """
        variant, ops = self.variant, OpsEngine(self.variant)
        chunked = variant.rank <= _LARGEST_CHUNKED_RANK
        keys = mx.random.split(mx.random.key(0), 3)
        # Small enough for a state without normalised keys to stay so.
        shape = (_TRIAL_BATCH, _FEWEST_TOKENS + 1, variant.columns)
        projected = mx.random.normal(shape, scale=0.1, key=keys[0]).astype(dtype)
        bias = mx.random.normal((variant.columns - 3 * variant.width,), key=keys[1])
        state = mx.random.normal((_TRIAL_BATCH, variant.heads, variant.rank, variant.rank), key=keys[2])
        mask = mx.arange(shape[1]) != mx.arange(_TRIAL_BATCH)[:, None] if masked else None
        inputs = [(projected, mask), (projected[:, :1], mask[:, :1] if masked else None)]

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
        if projected.size == 0:
            return self._no_reads(projected), state
        if projected.shape[1] == 1:
            return launch.scan(self.variant, projected, gate_bias, state, mask)
        return _differentiable_scan(self.variant)(projected, gate_bias, state, *_if_any(mask))

    def read(self, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
        if projected.size == 0:
            return self._no_reads(projected)
        if projected.shape[1] == 1:
            return launch.read(self.variant, projected, state, mask)
        return _differentiable_read(self.variant)(projected, state, *_if_any(mask))

    def _no_reads(self, projected: mx.array) -> mx.array:
        return mx.zeros((*projected.shape[:2], self.variant.width), projected.dtype)


def _if_any(mask: mx.array | None) -> list[mx.array]:
    # Functions with a gradient take arrays only.
    return [] if mask is None else [mask]


@functools.cache
def _differentiable_scan(variant: Variant) -> Callable[..., tuple[mx.array, mx.array]]:
    return _with_gradient(functools.partial(_long_scan, variant), OpsEngine(variant).scan, floats=3)


@functools.cache
def _differentiable_read(variant: Variant) -> Callable[..., mx.array]:
    return _with_gradient(functools.partial(launch.read, variant), OpsEngine(variant).read, floats=2)


def _with_gradient(fused: Callable, ops: Callable, floats: int) -> Callable:
    """A function whose gradient is that of another one, in its first arguments; the last one may be a mask."""
    function = mx.custom_function(fused)

    @function.vjp
    def gradient(primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], _: object) -> tuple[mx.array, ...]:
        mask = primals[floats:]
        cotangents = cotangents if isinstance(cotangents, tuple | list) else [cotangents]
        _, gradients = mx.vjp(lambda *arrays: ops(*arrays, *mask), list(primals[:floats]), list(cotangents))
        return (*gradients, *(mx.zeros_like(x) for x in mask))

    return function


def _long_scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    if projected.shape[1] < _FEWEST_TOKENS or variant.rank > _LARGEST_CHUNKED_RANK:
        return launch.scan(variant, projected, gate_bias, state, mask)
    return launch.chunked_scan(variant, projected, gate_bias, state, mask)
