"""The recurrence on a GPU with a gradient: a fused scan that keeps the state before every token."""

import mlx.core as mx

from mlx_deltamem.recurrence.custom_gradient import custom_gradient
from mlx_deltamem.recurrence.definition import token_gradients
from mlx_deltamem.recurrence.kernels.build import LARGEST_RANK, Kernel

_INPUTS = ("state", "keys", "write_keys", "written", "keep", "erase")
_HISTORY = Kernel("history", _INPUTS, ("history", "last_state"))


def supports(rank: int) -> bool:
    """Whether there is a kernel for states of this rank."""
    return rank <= LARGEST_RANK


def _gradients(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """The gradients of `history_scan`: a scan backwards, in which the queries are the keys that are written."""
    _, queries, keys, written, keep, erase = primals
    read_gradient, final_gradient, _ = cotangents
    after, state_gradient = _history(final_gradient, keys, queries, read_gradient, keep, erase, reverse=True)
    return state_gradient, *token_gradients(after, outputs[2], read_gradient, keys, written, erase, axes=(-2, -1))


@custom_gradient(_gradients, once=True)
def history_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Read and write the states of a batch of sequences.

    Args:
        state: `[B, H, r, r]`, the states before the first token.
        queries, keys, written, keep, erase: `[B, T, H, r]` with T > 0; `written` is `write * v`.

    Returns:
        The reads `[B, T, H, r]`, the states after the last token `[B, H, r, r]`, and the states before every token
        `[B, T, H, r, r]`. The gradient treats the third result as a constant. All arrays are float32.
    """
    history, state = _history(state, keys, keys, written, keep, erase, reverse=False)
    return (history * queries[..., None, :]).sum(axis=-1), state, history


def _history(*arrays: mx.array, reverse: bool) -> tuple[mx.array, mx.array]:
    """Run the kernel over the arrays `_INPUTS`.

    Returns:
        The state before (in reverse: after) every token, `[B, T, H, r, r]`, and the final state `[B, H, r, r]`.
    """
    batch, length, heads, rank = arrays[1].shape
    state_shape = (batch, heads, rank, rank)
    history, state = _HISTORY(
        arrays,
        (("RANK", rank), ("HEADS", heads), ("REVERSED", reverse)),
        batch * heads * rank,
        [((batch, length, heads, rank, rank), mx.float32), (state_shape, mx.float32)],
    )
    return history, state
