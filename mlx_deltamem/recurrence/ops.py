"""The engine that runs a layer's memory with MLX's own operations: for the CPU and for gradients."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.recurrence.gates import by_head, gates, unit_vectors
from mlx_deltamem.recurrence.one_token import read_token, write_tokens
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
            after, _ = self.write([projected], state, gate_bias[None], None, mask)
            return self.read(projected, state, mask), after
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
            return self.read_token(projected, state, mask, None, None)
        queries = unit_vectors(_masked(projected, mask)[..., : self.variant.width], self.variant)
        reads = (queries.swapaxes(1, 2) @ state.swapaxes(-1, -2)).swapaxes(1, 2).reshape(*projected.shape[:2], -1)
        return _masked(reads, mask).astype(projected.dtype)

    def write(
        self,
        projected: Sequence[mx.array],
        states: mx.array,
        gate_bias: mx.array,
        key_shift: mx.array | None = None,
        written: mx.array | None = None,
    ) -> list[mx.array]:
        """Write one token of each row into the states of several layers; see `one_token.write_tokens`."""
        return self._write_tokens(projected, states, gate_bias, key_shift, written)

    def __deepcopy__(self, memo: object) -> "OpsEngine":
        # It never changes, and compiled functions cannot be copied.
        return self

    # Kept, because to find them by the variant takes longer than some operations of MLX.
    @functools.cached_property
    def read_token(self) -> Callable[..., mx.array]:
        """Reads the states of one layer with one token of each row; see `one_token.read_token`."""
        return read_token(self.variant)

    @functools.cached_property
    def _write_tokens(self) -> Callable[..., list[mx.array]]:
        return write_tokens(self.variant)


def _masked(x: mx.array, mask: mx.array | None) -> mx.array:
    """`x` `[B, T, n]` with zeros for padding.

    Projections are masked before any other operation: padding may hold NaN, and a gradient of NaN times zero is NaN.
    """
    return x if mask is None else mx.where(mask[..., None], x, 0.0)
