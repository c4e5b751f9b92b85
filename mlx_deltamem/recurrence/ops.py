"""The engine that runs a layer's memory with MLX's own operations: for the CPU and for gradients."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.recurrence.gates import by_head, gates, keep_and_erase, norm, unit_vectors
from mlx_deltamem.recurrence.scan import delta_scan
from mlx_deltamem.recurrence.variant import Variant


@dataclass(frozen=True)
class OpsEngine:
    """Reads and writes the states of one layer; differentiable in every float argument."""

    variant: Variant

    def scan(
        self, projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Read and write the state with each token.

        Args:
            projected: `[B, T, P]`, the projections of the tokens (`Variant.columns`).
            gate_bias: `[G or 2 G]` float32.
            state: `[B, H, r, r]` float32, the states before the first token.
            mask: `[B, T]` bool; a token that is False reads zeros and writes nothing. Default: all True.

        Returns:
            The reads `[B, T, W]` in the dtype of `projected`, and the states after the last token, float32.
        """
        if projected.shape[1] == 1:
            return _one_token(self.variant)(projected, gate_bias, state, mask)
        projected, width = _masked(projected, mask), self.variant.width
        # Slices, because MLX 0.32 fails to compile the gradient of `mx.split` within a custom gradient.
        queries, keys, values = (projected[..., n * width : (n + 1) * width] for n in range(3))
        reads, state = delta_scan(
            state,
            unit_vectors(queries, self.variant),
            unit_vectors(keys, self.variant),
            by_head(values, self.variant),
            *gates(projected[..., 3 * width :], gate_bias, self.variant),
            mask=mask,
        )
        return reads.reshape(*projected.shape[:2], -1).astype(projected.dtype), state

    def read(self, projected: mx.array, state: mx.array, mask: mx.array | None = None) -> mx.array:
        """Read the state with each token and leave it as it is; arguments and result are as in `scan`.

        Only the first W columns of `projected` are needed, the queries.
        """
        if projected.shape[1] == 1:
            return _one_read(self.variant)(projected, state, mask)
        return _constant_reads(projected, state, mask, self.variant)


def _constant_reads(projected: mx.array, state: mx.array, mask: mx.array | None, variant: Variant) -> mx.array:
    queries = unit_vectors(_masked(projected, mask)[..., : variant.width], variant)
    reads = (queries.swapaxes(1, 2) @ state.swapaxes(-1, -2)).swapaxes(1, 2).reshape(*projected.shape[:2], -1)
    return _masked(reads, mask).astype(projected.dtype)


def _masked(x: mx.array, mask: mx.array | None) -> mx.array:
    """`x` `[B, T, n]` with zeros for padding.

    Projections are masked before any other operation: padding may hold NaN, and a gradient of NaN times zero is NaN.
    """
    return x if mask is None else mx.where(mask[..., None], x, 0.0)


@functools.cache
def _one_read(variant: Variant) -> Callable[..., mx.array]:
    """`OpsEngine.read` for one token, compiled."""
    return mx.compile(functools.partial(_constant_reads, variant=variant))


@functools.cache
def _one_token(variant: Variant) -> Callable[..., tuple[mx.array, mx.array]]:
    """`OpsEngine.scan` for one token, compiled.

    It uses as few operations as possible, because for one token each operation costs more than its arithmetic.
    """

    def step(
        projected: mx.array, gate_bias: mx.array, state: mx.array, mask: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        vectors, value, *raw_gates = mx.split(_masked(projected, mask), _borders(variant), axis=-1)
        vectors = _side_by_side(vectors, variant).astype(mx.float32)
        if variant.normalized:
            vectors = mx.tanh(vectors)
        columns = vectors.swapaxes(-1, -2)
        read, recalled = mx.split(state @ columns, 2, axis=-1)
        key = vectors[..., 1:, :]
        if variant.normalized:
            # It is cheaper to divide the products with the state than the vectors. The diagonal has the squared norms.
            squares = vectors @ columns
            key_norm = norm(squares[..., 1:, 1:])
            read, recalled, key = read / norm(squares[..., :1, :1]), recalled / key_norm, key / key_norm
        biases = (bias.reshape(variant.heads, -1, 1) for bias in mx.split(gate_bias, len(raw_gates)))
        raw_gates = [_rows(raw, variant) + bias for raw, bias in zip(raw_gates, biases, strict=True)]
        beta = mx.sigmoid(raw_gates[0])
        lambda_ = mx.sigmoid(raw_gates[1]) if variant.free_lambda else 1.0 - beta
        keep, erase = keep_and_erase(beta, lambda_, variant)
        new_state = keep * state + (beta * _rows(value, variant) - erase * recalled) * key
        if mask is not None:
            seen = mask[..., None, None]
            read, new_state = mx.where(seen, read, 0.0), mx.where(seen, new_state, state)
        return read.astype(projected.dtype).reshape(-1, 1, variant.width), new_state

    return mx.compile(step)


def _borders(variant: Variant) -> list[int]:
    """The columns where a token's projection is cut: query and key, value, β and, if it is free, λ."""
    borders = [2 * variant.width, 3 * variant.width]
    return [*borders, 3 * variant.width + variant.gates] if variant.free_lambda else borders


def _side_by_side(vectors: mx.array, variant: Variant) -> mx.array:
    """The query and the key of each head, `[B, H, 2, r]`, from those of one token `[B, 1, 2 W]`."""
    if variant.heads == 1:
        return vectors.reshape(-1, 1, 2, variant.rank)
    return vectors.reshape(-1, 2, variant.heads, variant.rank).swapaxes(1, 2)


def _rows(raw: mx.array, variant: Variant) -> mx.array:
    """`[B, ..., H * n]` as a column for each state, `[B, H, n, 1]` float32."""
    return raw.reshape(raw.shape[0], variant.heads, -1, 1).astype(mx.float32)
