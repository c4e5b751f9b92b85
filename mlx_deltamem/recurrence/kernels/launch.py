"""Launches the kernels of `tokens.h` and `starts.h`, which run a layer's memory.

The arguments of all functions are those of `OpsEngine.scan`: `projected` `[B, T, P]`, `gate_bias` `[G or 2 G]` float32,
`state` `[B, H, r, r]` float32 and `mask` `[B, T]` bool.
"""

import functools
import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_deltamem.recurrence.gates import SMALLEST_NORM
from mlx_deltamem.recurrence.kernels.build import Kernel, Template
from mlx_deltamem.recurrence.variant import Variant


def scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The reads `[B, T, W]` and the new states, with one kernel that loops over the tokens."""
    batch, length, _ = projected.shape
    outputs = [((batch, length, variant.width), projected.dtype), (state.shape, mx.float32)]
    arrays = [projected, gate_bias, state]
    reads, state = _run("scan", variant, arrays, mask, outputs, batch * variant.width)
    return reads, state


def read(variant: Variant, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
    """The reads `[B, T, W]` of a state that stays as it is; all tokens run side by side."""
    batch, length, _ = projected.shape
    outputs = [((batch, length, variant.width), projected.dtype)]
    threads = batch * length * variant.width
    return _run("read", variant, [projected, state], mask, outputs, threads)[0]


def chunked_scan(
    variant: Variant, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """`scan` with three kernels: the map of each chunk of tokens, the state at the start of each chunk, the reads.

    The maps are those of `recurrence/chunked.py`.
    """
    batch, length, _ = projected.shape
    rank, heads = variant.rank, variant.heads
    # The first and the third kernel loop over the tokens of a chunk, the second over the chunks. Together that is
    # 2 * chunk + length / chunk steps, which is least for sqrt(length / 2).
    chunk = 2 ** round(math.log2(math.sqrt(length / 2)))
    chunks = -(-length // chunk)
    rows = batch * chunks * variant.width
    inputs = [projected, gate_bias, _integer(chunk)]
    maps_shape = (batch, chunks, heads, rank, rank + 1, rank)
    (maps,) = _run("maps", variant, inputs, mask, [(maps_shape, mx.float32)], rows * (rank + 1))
    starts, state = _STARTS(
        [maps, state],
        (("RANK", rank), ("HEADS", heads)),
        batch * variant.width,
        [((batch, chunks, heads, rank, rank), mx.float32), (state.shape, mx.float32)],
    )
    reads_shape = (batch, length, variant.width)
    (reads,) = _run("chunks", variant, [*inputs, starts], mask, [(reads_shape, projected.dtype)], rows)
    return reads, state


@functools.cache
def _integer(value: int) -> mx.array:
    # An array, because CUDA kernels take only pointers.
    array = mx.array([value], mx.int32)
    mx.eval(array)
    return array


def _run(
    task: str,
    variant: Variant,
    arrays: Sequence[mx.array],
    mask: mx.array | None,
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    threads: int,
) -> Sequence[mx.array]:
    kernel = _tokens_kernel(task, mask is not None)
    arrays = arrays if mask is None else [*arrays, mask.astype(mx.bool_)]
    return kernel(arrays, _template(variant, arrays[0].dtype), threads, outputs)


_STARTS = Kernel("starts", ("maps", "state"), ("starts", "new_state"))
# The inputs and outputs of each task of tokens.h.
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
    definitions: dict[str, int | str] = {
        **tasks,
        "DELTA_TASK": f"DELTA_{task.upper()}",
        "DELTA_MASKED": int(masked),
        "DELTA_SMALLEST_NORM": f"{SMALLEST_NORM}f",
    }
    return Kernel("tokens", (*inputs, "mask") if masked else inputs, outputs, tuple(definitions.items()))


@functools.cache
def _template(variant: Variant, dtype: mx.Dtype) -> Template:
    return (
        ("Activation", dtype),
        ("RANK", variant.rank),
        ("HEADS", variant.heads),
        ("NORMALIZE", variant.normalized),
        ("RANKWISE", variant.rankwise),
        ("FREE_LAMBDA", variant.free_lambda),
        ("KEEPS_ALL", variant.mode == "no_lambda"),
        ("LAMBDA_OUTSIDE", variant.mode == "lambda_outside"),
    )
