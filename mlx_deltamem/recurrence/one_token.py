"""One token at a time, compiled: the steps of decoding on a CPU.

For one token, each operation of MLX costs more than its arithmetic, views included. So there are two functions with few
operations. `read_token` reads the state of one layer. `write_tokens` writes the token into the states of all layers at
once, because a layer's state is not read again before the next token.
"""

import functools
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_deltamem.recurrence.gates import keep_and_erase, norm
from mlx_deltamem.recurrence.variant import Variant


@functools.cache
def read_token(variant: Variant) -> Callable[..., mx.array]:
    """A compiled function that reads the states of one layer with one token of each row.

    Its arguments:

        projected: `[B, 1, P or W]`, the projections of the token.
        state: `[B, H, r, r]`, or `[B, H, r + 1, r]` with a key shift.
        mask: `[B, 1]` bool, False for padding, which reads zeros; None: no padding.
        gate, gate_bias: `[B, 1, H]` and `[H]`, the projections and the biases of the read gates; None: no gates.

    It returns the reads `[B, 1, W]` in the dtype of the projections.
    """

    def read(
        projected: mx.array,
        state: mx.array,
        mask: mx.array | None,
        gate: mx.array | None,
        gate_bias: mx.array | None,
    ) -> mx.array:
        queries = projected[..., : variant.width]
        if mask is not None:
            # Before any other operation: padding may hold NaN.
            queries = mx.where(mask[..., None], queries, 0.0)
        column = queries.reshape(-1, variant.heads, variant.rank, 1).astype(mx.float32)
        if variant.normalized:
            column = mx.tanh(column)
        reads = state[..., : variant.rank, :] @ column
        if variant.normalized:
            # It is cheaper to divide the product with the state than the query.
            reads = reads / norm(_transposed(column) @ column)
        if mask is not None:
            reads = mx.where(mask[..., None, None], reads, 0.0)
        reads = reads.astype(projected.dtype)
        if gate is not None and gate_bias is not None:
            opened = mx.sigmoid(gate.astype(mx.float32) + gate_bias).astype(reads.dtype)
            reads = reads * opened.reshape(-1, variant.heads, 1, 1)
        return reads.reshape(-1, 1, variant.width)

    return mx.compile(read)


@functools.cache
def write_tokens(variant: Variant) -> Callable[..., list[mx.array]]:
    """A compiled function that writes one token of each row into the states of several layers.

    Its arguments, for L layers:

        projected: L arrays `[B, 1, P]`, the projections of the token (`Variant.columns`).
        states: `[L * B, H, r, r]` float32, or `[L * B, H, r + 1, r]` with a key shift.
        gate_bias: `[L, G or 2 G]` float32.
        key_shift: `[L, W]` float32, the factors of the key shift (`core/key_shift.py`); None without one.
        written: `[B, 1]` bool, False for rows that keep their state bit for bit; None: all rows are written.

    It returns the new states in the form of `states`, and then the states `[B, H, ...]` of each layer.
    """

    def write(
        projected: Sequence[mx.array],
        states: mx.array,
        gate_bias: mx.array,
        key_shift: mx.array | None,
        written: mx.array | None,
    ) -> list[mx.array]:
        layers, rows, heads = len(projected), projected[0].shape[0], variant.heads
        tokens = mx.concatenate(list(projected))
        if written is not None:
            seen = mx.tile(written, (layers, 1))[..., None]
            tokens = mx.where(seen, tokens, 0.0)
        dtype = tokens.dtype

        def by_head(x: mx.array) -> mx.array:
            """`[L * B, 1, H * n]` as a column for each state, `[L, B, H, n, 1]`."""
            return x.reshape(layers, rows, heads, x.shape[-1] // heads, 1)

        query, key, value, *raw_gates = (by_head(part) for part in mx.split(tokens, _borders(variant), axis=-1))
        state = states.reshape(layers, rows, *states.shape[1:])
        matrix = state[..., : variant.rank, :]
        if key_shift is not None:
            factors = key_shift.reshape(layers, 1, heads, -1, 1).astype(dtype)
            key = key + factors * _transposed(state[..., variant.rank :, :]).astype(dtype)
        key = key.astype(mx.float32)
        if variant.normalized:
            key = mx.tanh(key)
        recalled, row = matrix @ key, _transposed(key)
        if variant.normalized:
            length = norm(row @ key)
            recalled, row = recalled / length, row / length
        biases = mx.split(gate_bias, len(raw_gates), axis=-1)
        opened = [
            mx.sigmoid(raw.astype(mx.float32) + bias.reshape(layers, 1, heads, -1, 1))
            for raw, bias in zip(raw_gates, biases, strict=True)
        ]
        beta = opened[0]
        lambda_ = opened[1] if variant.free_lambda else 1.0 - beta
        keep, erase = keep_and_erase(beta, lambda_, variant)
        column = beta * value.astype(mx.float32) - erase * recalled
        # In one kernel with the state, MLX would compute these again for each number of the state. The concatenation
        # makes it compute them before, once.
        joined = mx.concatenate([column, mx.broadcast_to(keep, column.shape), _transposed(row)])
        column, keep, row = mx.split(joined, 3)
        after = keep * matrix + column * _transposed(row)
        if key_shift is not None:
            after = mx.concatenate([after, _transposed(query).astype(mx.float32)], axis=-2)
        after = after.reshape(states.shape)
        if written is not None:
            after = mx.where(seen[..., None], after, states)
        return [after, *mx.split(after, layers)]

    return mx.compile(write)


def _borders(variant: Variant) -> list[int]:
    """The columns where a token's projection is cut: query, key, value, β and, if it is free, λ."""
    borders = [variant.width, 2 * variant.width, 3 * variant.width]
    return [*borders, 3 * variant.width + variant.gates] if variant.free_lambda else borders


def _transposed(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)
