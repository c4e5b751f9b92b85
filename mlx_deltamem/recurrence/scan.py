"""The recurrence of δ-mem: a state read and then written by the delta rule, token after token.

For each token, with `S` the state of one head (row = value, column = key) and gates that act on rows:

    read = S q
    S    = keep * S - erase * (S k) kᵀ + write * v kᵀ

(arXiv 2605.12357, section 3; facts of the reference: the read comes before the token's own write.)
"""

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_deltamem.recurrence.chunked import chunked_scan
from mlx_deltamem.recurrence.kernels.build import on_gpu
from mlx_deltamem.recurrence.kernels.history import history_scan, supports
from mlx_deltamem.recurrence.kernels.trial import trial


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
    """Read and write the states of a batch of sequences; differentiable in every float argument.

    Args:
        state: `[B, H, r, r]`, the states before the first token (row = value, column = key).
        q, k, v: `[B, T, H, r]`, memory queries, keys and values.
        keep, erase, write: Gates, `[B, T, H, r]` or anything that broadcasts to it; `keep` may be 0.
        mask: `[B, T]` bool; a token that is False reads 0 and writes nothing. Default: all True.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token `[B, H, r, r]`, float32 whatever the inputs are.

    Raises:
        ValueError: The shapes do not fit together.
    """
    state, tokens = _prepare(state, (q, k, v, keep, erase, write), mask)
    queries, keys, values, keep, erase, write = tokens
    length = keys.shape[1]
    if length == 0:
        return queries, state
    written = write * values
    if length == 1:
        read, state = _step(state, *(x[:, 0] for x in (queries, keys, written, keep, erase)))
        return read[:, None], state
    if on_gpu() and _has_kernel(keys.shape[-1]):
        reads, state, _ = history_scan(state, queries, keys, written, keep, erase)
        return reads, state
    return chunked_scan(state, queries, keys, written, keep, erase)


def delta_scan_reference(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """`delta_scan` as it is defined, one token after the other: the yardstick for every faster form."""
    state, tokens = _prepare(state, (q, k, v, keep, erase, write), mask)
    reads = [mx.zeros_like(tokens[0][:, :0])]
    for t in range(tokens[0].shape[1]):
        query, key, value, keep_t, erase_t, write_t = (x[:, t] for x in tokens)
        read, state = _step(state, query, key, write_t * value, keep_t, erase_t)
        reads.append(read[:, None])
    return mx.concatenate(reads, axis=1), state


@functools.cache
def _has_kernel(rank: int) -> bool:
    """Whether the fused scan can be used for states of this rank; a warning says if it cannot where it should."""
    keys = mx.random.split(mx.random.key(0), 6)
    state = mx.random.normal((1, 1, rank, rank), key=keys[0])
    tokens = [mx.random.uniform(shape=(1, 3, 1, rank), key=key) / math.sqrt(rank) for key in keys[1:]]

    def with_gradients(scan: Callable[..., Sequence[mx.array]]) -> list[mx.array]:
        outputs, gradients = mx.vjp(lambda *arrays: scan(*arrays)[:2], [state, *tokens], [tokens[0], state])
        return outputs + gradients

    def by_definition(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        return delta_scan_reference(*arrays, mx.ones_like(tokens[0]))

    return supports(rank) and trial.passes(
        lambda: with_gradients(history_scan), lambda: with_gradients(by_definition), tolerance=1e-3
    )


def _prepare(
    state: mx.array, tokens: tuple[mx.array, ...], mask: mx.array | None
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Check the shapes, make everything float32, and turn masked tokens into ones that do nothing."""
    shape = tokens[1].shape
    if len(shape) != 4:
        raise ValueError(f"delta_scan got keys of shape {shape}; expected [B, T, H, r]")
    batch, length, heads, rank = shape
    if state.shape != (batch, heads, rank, rank):
        raise ValueError(
            f"delta_scan got a state of shape {state.shape} and keys of shape {shape}; "
            f"expected the state to be {(batch, heads, rank, rank)}"
        )
    if mask is not None and mask.shape != (batch, length):
        raise ValueError(f"delta_scan got a mask of shape {mask.shape}; expected {(batch, length)}, as the keys have")
    try:
        tokens = tuple(mx.broadcast_to(x, shape).astype(mx.float32) for x in tokens)
    except ValueError:
        raise ValueError(f"delta_scan got inputs of shapes {[x.shape for x in tokens]}; expected all {shape}") from None
    if mask is not None:
        written = mask.astype(mx.bool_)[:, :, None, None]
        idle = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        tokens = tuple(mx.where(written, x, nothing) for x, nothing in zip(tokens, idle, strict=True))
    return state.astype(mx.float32), tokens


def _step(
    state: mx.array, query: mx.array, key: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """One token: `state` `[B, H, r, r]`, the rest `[B, H, r]`."""
    row_key = key[..., None, :]
    read = (state * query[..., None, :]).sum(axis=-1)
    recalled = (state * row_key).sum(axis=-1)
    state = keep[..., None] * state + (written - erase * recalled)[..., None] * row_key
    return read, state
