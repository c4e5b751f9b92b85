"""What tokens read from a layer's memory, and how it steers the layer."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class PackedWeights:
    """The weights of a layer as a forward pass uses them.

    Attributes:
        sources: The arrays it was made from.
        inputs: `[hidden, P]` in the activations' dtype: the projections to memory queries, keys, values and gates.
        queries: `[hidden, H * r]`, the first columns of it.
        gate_bias: float32.
        corrections: By name of the backbone's projection, `[H * r, width]` in the same dtype, scale included.
        output_norm: Weight and epsilon of the norm of the output's correction, if it has one.
        read_gate: `[hidden, H]` in the activations' dtype and `[H]` float32: the projection to the gates on what is
            read, and their bias; None: the adapter has none.
        key_shift: `[H * r]` float32: how much of the query of the token written before is in a key; None: nothing.
    """

    sources: list[mx.array]
    inputs: mx.array
    queries: mx.array
    gate_bias: mx.array
    corrections: dict[str, mx.array]
    output_norm: tuple[mx.array, float] | None
    read_gate: tuple[mx.array, mx.array] | None
    key_shift: mx.array | None

    def evaluate(self) -> bool:
        """Evaluate the weights, which several threads may use then; False within a function transformation."""
        try:
            mx.eval([self.inputs, self.queries, self.gate_bias, self.corrections])
            mx.eval([self.output_norm, self.read_gate, self.key_shift])
        except (ValueError, RuntimeError):
            return False
        return True


@dataclass(frozen=True)
class Gates:
    """The gates of a stretch of tokens that someone may want to look at, each `[B, T, H, r or 1]` float32.

    Attributes:
        keep: How much of the state a token keeps.
        write: β, how much of its own value it writes.
    """

    keep: mx.array
    write: mx.array


class Reads:
    """What the tokens of one pass read from a layer's memory, and how that steers the layer.

    Args:
        reads: `[B, T, H * r]` in the activations' dtype.
        weights: The layer's weights.
        gates: Gives the tokens' gates.
        written: Whether the tokens were written as well.
        written_tokens: `[B, T]` bool, which of them were; None: all, or none.
    """

    def __init__(
        self,
        reads: mx.array,
        weights: PackedWeights,
        gates: Callable[[], Gates],
        written: bool,
        written_tokens: mx.array | None = None,
    ):
        self.written = written
        self.written_tokens = written_tokens
        self._reads = reads
        self._weights = weights
        self._gates = gates

    @functools.cached_property
    def gates(self) -> Gates:
        """The tokens' gates, computed for whoever asks; where nothing was written, those a write would have had."""
        return self._gates()

    def sum_over_written(self, gate: mx.array) -> tuple[mx.array, mx.array]:
        """The sum of a gate's means over heads and rows, for the tokens that were written, and how many they are."""
        means = gate.mean(axis=(2, 3))
        if not self.written:
            return mx.zeros(()), mx.zeros(())
        if self.written_tokens is None:
            return means.sum(), mx.array(float(means.size))
        return (means * self.written_tokens).sum(), self.written_tokens.sum().astype(mx.float32)

    def arrays(self) -> list[mx.array]:
        """What it holds, token by token: `[B, T, ...]` each."""
        return [self._reads, self.gates.keep, self.gates.write]

    @classmethod
    def from_arrays(cls, arrays: Sequence[mx.array], weights: PackedWeights) -> "Reads":
        """The way back from `arrays`, of a pass that wrote."""
        reads, keep, write = arrays
        return cls(reads, weights, lambda: Gates(keep, write), written=True)

    def correct(self, projection: str, base: mx.array, rows: slice | None = None) -> mx.array:
        """Add what was read to the output of a projection of the backbone; zero reads leave it as it is, bit for bit.

        Args:
            projection: The projection's name: `q_proj`, `k_proj`, `v_proj`, `qkv_proj` or `o_proj`.
            base: `[B, T, width]`, its output; the result has the same dtype.
            rows: The part of the output that this process holds, where the projection is spread over several.
        """
        weight = self._weights.corrections[projection]
        if rows is not None:
            weight = weight[:, rows]
        if projection == "o_proj" and self._weights.output_norm is not None:
            delta = mx.fast.rms_norm((self._reads @ weight).astype(mx.float32), *self._weights.output_norm)
            return base + delta.astype(base.dtype)
        if base.dtype != weight.dtype:
            return base + (self._reads @ weight).astype(base.dtype)
        return mx.addmm(base, self._reads, weight)
