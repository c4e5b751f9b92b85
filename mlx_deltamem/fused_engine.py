"""The memory of one layer over a stretch of tokens, as fused kernels on a GPU."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.kernels.build import LARGEST_RANK, Kernel
from mlx_deltamem.kernels.trial import trial
from mlx_deltamem.ops_engine import OpsEngine
from mlx_deltamem.tokens import SMALLEST_NORM, Variant

# From this many tokens on they are cut into chunks that run side by side.
_FEWEST_TOKENS = 32
# What a chunk makes of a state is r + 1 times as large as the state, so with more rows one token after the other is
# better.
_LARGEST_CHUNKED_RANK = 16

_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


@dataclass(frozen=True)
class FusedEngine:
    """Reads and writes states as `OpsEngine` does, in one kernel, or three for long stretches of tokens.

    Where a stretch has more than one token, gradients are those of `OpsEngine`, run again. One token has none: MLX
    raises a ValueError.
    """

    variant: Variant

    def supports(self, dtype: mx.Dtype) -> bool:
        """Whether there is a kernel for projections of this dtype."""
        return self.variant.rank <= LARGEST_RANK and dtype in _DTYPES

    def works(self, dtype: mx.Dtype) -> bool:
        """Try the kernels out for projections of this dtype; a warning says if they cannot be used."""
        variant, ops = self.variant, OpsEngine(self.variant)
        keys = mx.random.split(mx.random.key(0), 3)
        # Small enough for a state without normalised keys to stay so.
        projected = mx.random.normal((1, _FEWEST_TOKENS + 1, variant.columns), scale=0.1, key=keys[0]).astype(dtype)
        bias = mx.random.normal((variant.columns - 3 * variant.width,), key=keys[1])
        state = mx.random.normal((1, variant.heads, variant.rank, variant.rank), key=keys[2])

        def fused() -> list[mx.array]:
            arrays = (projected, bias, state, None)
            chunked = _chunked_scan(variant, *arrays) if variant.rank <= _LARGEST_CHUNKED_RANK else ()
            return [*_scan(variant, *arrays), _read(variant, projected, state), *chunked]

        def expected() -> list[mx.array]:
            scanned = ops.scan(projected, bias, state)
            chunked = scanned if variant.rank <= _LARGEST_CHUNKED_RANK else ()
            return [*scanned, ops.read(projected, state), *chunked]

        return trial.passes(fused, expected, tolerance=1e-3 if dtype == mx.float32 else 3e-2)

    def scan(
        self, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        length = projected.shape[1]
        if length == 1:
            return _scan(self.variant, projected, gate_bias, state, mask)
        if length == 0:
            return mx.zeros((projected.shape[0], 0, self.variant.width), projected.dtype), state
        arrays = (projected, gate_bias, state)
        return _differentiable_scan(self.variant)(*arrays, *(() if mask is None else (mask.astype(mx.bool_),)))

    def read(self, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
        length = projected.shape[1]
        if length == 1:
            return _read(self.variant, projected, state, mask)
        if length == 0:
            return mx.zeros((projected.shape[0], 0, self.variant.width), projected.dtype)
        return _differentiable_read(self.variant)(projected, state, *(() if mask is None else (mask.astype(mx.bool_),)))


@functools.cache
def _differentiable_scan(variant: Variant) -> Callable[..., tuple[mx.array, mx.array]]:
    return _with_gradient(functools.partial(_long_scan, variant), OpsEngine(variant).scan, floats=3)


@functools.cache
def _differentiable_read(variant: Variant) -> Callable[..., mx.array]:
    return _with_gradient(functools.partial(_read, variant), OpsEngine(variant).read, floats=2)


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
        return _scan(variant, projected, gate_bias, state, mask)
    return _chunked_scan(variant, projected, gate_bias, state, mask)


def _scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """One token after the other, in one kernel."""
    batch, length, _ = projected.shape
    outputs = [((batch, length, variant.width), projected.dtype), (state.shape, mx.float32)]
    arrays = [projected, gate_bias, state]
    reads, state = _run("scan", variant, arrays, mask, outputs, batch * variant.width)
    return reads, state


def _read(variant: Variant, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
    """Each token by threads of its own."""
    batch, length, _ = projected.shape
    outputs = [((batch, length, variant.width), projected.dtype)]
    threads = batch * length * variant.width
    return _run("read", variant, [projected, state], mask, outputs, threads)[0]


def _chunked_scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """First what each chunk of tokens makes of a state row, then the state before each chunk, then the reads."""
    batch, length, _ = projected.shape
    rank, heads = variant.rank, variant.heads
    # About as many chunks as two passes over one of them have tokens.
    chunk = 2 ** round(math.log2(math.sqrt(length / 2)))
    chunks = -(-length // chunk)
    rows = batch * chunks * variant.width
    inputs = [projected, gate_bias, _integer(chunk)]
    maps_shape = (batch, chunks, heads, rank, rank + 1, rank)
    (maps,) = _run("maps", variant, inputs, mask, [(maps_shape, mx.float32)], rows * (rank + 1))
    starts, state = _STARTS(
        [maps, state],
        {"RANK": rank, "HEADS": heads},
        batch * variant.width,
        [((batch, chunks, heads, rank, rank), mx.float32), (state.shape, mx.float32)],
    )
    reads_shape = (batch, length, variant.width)
    (reads,) = _run("chunks", variant, [*inputs, starts], mask, [(reads_shape, projected.dtype)], rows)
    return reads, state


@functools.cache
def _integer(value: int) -> mx.array:
    # An array, since CUDA kernels get pointers only.
    array = mx.array([value], mx.int32)
    mx.eval(array)
    return array


def _run(
    task: str,
    variant: Variant,
    arrays: list[mx.array],
    mask: mx.array | None,
    outputs: list[tuple[tuple[int, ...], mx.Dtype]],
    threads: int,
) -> list[mx.array]:
    kernel = _tokens_kernel(task, mask is not None)
    arrays = arrays if mask is None else [*arrays, mask]
    return kernel(arrays, _template(variant, arrays[0].dtype), threads, outputs)


_STARTS = Kernel("starts", ("maps", "state"), ("starts", "new_state"))
_ARRAYS = {
    "scan": (("projected", "gate_bias", "state"), ("reads", "new_state")),
    "read": (("projected", "state"), ("reads",)),
    "maps": (("projected", "gate_bias", "chunk_length"), ("maps",)),
    "chunks": (("projected", "gate_bias", "chunk_length", "state"), ("reads",)),
}


@functools.cache
def _tokens_kernel(task: str, masked: bool) -> Kernel:
    inputs, outputs = _ARRAYS[task]
    tasks = {f"DELTA_{name.upper()}": number for number, name in enumerate(_ARRAYS)}
    definitions = tasks | {
        "DELTA_TASK": f"DELTA_{task.upper()}",
        "DELTA_MASKED": int(masked),
        "DELTA_SMALLEST_NORM": f"{SMALLEST_NORM}f",
    }
    return Kernel("tokens", (*inputs, "mask") if masked else inputs, outputs, tuple(definitions.items()))


@functools.cache
def _template(variant: Variant, dtype: mx.Dtype) -> dict[str, int | bool | mx.Dtype]:
    return {
        "Activation": dtype,
        "RANK": variant.rank,
        "HEADS": variant.heads,
        "NORMALIZE": variant.normalized,
        "RANKWISE": variant.rankwise,
        "FREE_LAMBDA": variant.free_lambda,
        "KEEPS_ALL": variant.mode == "no_lambda",
        "LAMBDA_OUTSIDE": variant.mode == "lambda_outside",
    }
