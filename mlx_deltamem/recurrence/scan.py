"""`delta_scan`: the recurrence in the fastest form for the device."""

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_deltamem.recurrence.chunked import chunk_count, chunked_scan
from mlx_deltamem.recurrence.definition import by_steps, check_inputs, step
from mlx_deltamem.recurrence.kernels.build import on_gpu
from mlx_deltamem.recurrence.kernels.history import history_scan, supports
from mlx_deltamem.recurrence.kernels.trial import trial
from mlx_deltamem.recurrence.sequential import sequential_scan


def delta_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences; differentiable in every float argument, once.

    For gradients of gradients, use `mlx_deltamem.recurrence.definition.delta_scan_reference`, a loop over the tokens.

    Each token reads the state `S` of its head and then writes it (arXiv 2605.12357, section 3):

        read = S q
        S    = keep * S - erase * (S k) kᵀ + write * v kᵀ

    Args:
        state: `[B, H, r, r]`, the states before the first token (row = value, column = key).
        q, k, v: `[B, T, H, r]`, memory queries, keys and values.
        keep, erase, write: Gates on the rows of the state, `[B, T, H, r]` or anything that broadcasts to it; `keep` may
            be 0.
        mask: `[B, T]` bool; a token that is False reads zeros and writes nothing. Default: all True.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token `[B, H, r, r]`; float32 for inputs of any real
        dtype.

    Raises:
        ValueError: An argument is not a real array, or the shapes do not fit together. The gradient of a scan of more
            than one token raises it where it is to be differentiated.
    """
    state, tokens = check_inputs(state, (q, k, v, keep, erase, write), mask)
    queries, keys, values, keep, erase, write = tokens
    length = keys.shape[1]
    if keys.size == 0:
        # Without tokens the state stays as it is. Without rows, heads or a rank, both results are empty.
        return queries, state
    written = write * values
    if length == 1:
        read, state = step(state, *(x[:, 0] for x in (queries, keys, written, keep, erase)))
        return read[:, None], state
    if on_gpu() and _has_kernel(keys.shape[-1]):
        reads, state, _ = history_scan(state, queries, keys, written, keep, erase)
        return reads, state
    scan = chunked_scan if chunk_count(keys.shape) > 1 else sequential_scan
    return scan(state, queries, keys, written, keep, erase)


@functools.cache
def _has_kernel(rank: int) -> bool:
    """Whether the GPU kernel works for states of this rank; if there is a kernel and it does not, a warning says so."""
    seeds = mx.random.split(mx.random.key(0), 6)
    state = mx.random.normal((1, 1, rank, rank), key=seeds[0])
    tokens = [mx.random.uniform(shape=(1, 3, 1, rank), key=seed) / math.sqrt(rank) for seed in seeds[1:]]

    def with_gradients(scan: Callable[..., Sequence[mx.array]]) -> list[mx.array]:
        outputs, gradients = mx.vjp(lambda *arrays: scan(*arrays)[:2], [state, *tokens], [tokens[0], state])
        return outputs + gradients

    return supports(rank) and trial.passes(
        lambda: with_gradients(history_scan), lambda: with_gradients(by_steps), tolerance=1e-3
    )
