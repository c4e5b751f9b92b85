"""The reads of tokens from the memory of a layer, and the corrections of the layer that follow from them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_deltamem.core.past import LayerPass


@dataclass(frozen=True)
class PackedWeights:
    """The weights of a layer in the form that a forward pass uses.

    Attributes:
        inputs: `[hidden, P]` in the activations' dtype: the projections to memory queries, keys, values and gates.
        queries: `[hidden, H * r]`, the first columns of `inputs`.
        gate_bias: `[G or 2 G]` float32, the biases of β and, if it is free, λ.
        corrections: By name of the backbone's projection, `[H * r, width]` in the activations' dtype, scale included.
        output_norm: The weight and the epsilon of the norm on the correction of the output; None: no norm.
        read_gate: The projection to the read gates, `[hidden, H]` in the activations' dtype, and their bias, `[H]`
            float32; None: the adapter has no read gates.
        key_shift: `[H * r]` float32, the factors of the key shift; None: the adapter has no key shift.
        parts: The parts of `corrections` that `held_correction` has made.
    """

    inputs: mx.array
    queries: mx.array
    gate_bias: mx.array
    corrections: dict[str, mx.array]
    output_norm: tuple[mx.array, float] | None
    read_gate: tuple[mx.array, mx.array] | None
    key_shift: mx.array | None
    parts: dict[tuple[str, int, int], mx.array] = field(default_factory=dict)

    def held_correction(self, projection: str, rows: slice | None) -> mx.array:
        """The correction `[H * r, width]` of a projection, or the part of it for some rows of the projection.

        A part is made once, and contiguous, because a view makes a single token slower.
        """
        if rows is None:
            return self.corrections[projection]
        key = (projection, rows.start, rows.stop)
        if key in self.parts:
            return self.parts[key]
        part = mx.contiguous(self.corrections[projection][:, rows])
        if _is_evaluated(part):
            self.parts[key] = part
        return part

    def evaluate(self) -> bool:
        """Evaluate the weights, so that several threads may use them.

        Returns:
            Whether that was possible; it is not within a function transformation.
        """
        return _is_evaluated(
            [
                self.inputs,
                self.queries,
                self.gate_bias,
                self.corrections,
                self.output_norm,
                self.read_gate,
                self.key_shift,
            ]
        )


def _is_evaluated(arrays: object) -> bool:
    """Evaluate arrays. Returns False where that is not possible: within a function transformation."""
    try:
        mx.eval(arrays)
    except (ValueError, RuntimeError):
        return False
    return True


@dataclass(frozen=True)
class Gates:
    """The gates of the tokens of a pass, each `[B, T, H, r or 1]` float32.

    Attributes:
        keep: The part of the state that a token keeps.
        write: β, the part of its value that a token writes.
    """

    keep: mx.array
    write: mx.array


class Reads:
    """The reads of one pass from the memory of a layer, and the corrections that follow from them.

    Args:
        reads: `[B, T, H * r]` in the activations' dtype.
        weights: The layer's weights.
        gates: Returns the gates of the tokens; called at the first use of `Reads.gates`.
        written: Whether the pass wrote the memory.
        written_tokens: `[B, T]` bool, the tokens that were written; None: all of them, or none if `written` is False.
        inputs: `[B, T, hidden]`, the inputs of the layer; None where they are not kept (`from_arrays`).
        layer_pass: For a pass that wrote, what is needed to take its last tokens back; None if that is not known.
    """

    def __init__(
        self,
        reads: mx.array,
        weights: PackedWeights,
        gates: Callable[[], Gates],
        written: bool,
        written_tokens: mx.array | None = None,
        inputs: mx.array | None = None,
        layer_pass: LayerPass | None = None,
    ):
        self.inputs = inputs
        self.layer_pass = layer_pass
        self.written = written
        self.written_tokens = written_tokens
        self._reads = reads
        self._weights = weights
        self._gates = gates

    @functools.cached_property
    def gates(self) -> Gates:
        """The gates of the tokens; for a pass that did not write, the gates that a write would have."""
        return self._gates()

    def sum_over_written(self, gate: mx.array) -> tuple[mx.array, mx.array]:
        """The sum over the written tokens of a gate's mean over heads and rows, and the number of these tokens.

        Args:
            gate: `[B, T, H, r or 1]`, one of `gates`.

        Returns:
            Two arrays `[B]` float32.
        """
        means = gate.mean(axis=(2, 3))
        batch, length = means.shape
        if not self.written:
            return mx.zeros(batch), mx.zeros(batch)
        if self.written_tokens is None:
            return means.sum(axis=1), mx.full(batch, float(length))
        return (means * self.written_tokens).sum(axis=1), self.written_tokens.sum(axis=1).astype(mx.float32)

    def arrays(self) -> list[mx.array]:
        """The reads and the gates as arrays `[B, T, ...]`, for `from_arrays`."""
        return [self._reads, self.gates.keep, self.gates.write]

    @classmethod
    def from_arrays(cls, arrays: Sequence[mx.array], weights: PackedWeights) -> "Reads":
        """The inverse of `arrays`, for a pass that wrote all of its tokens."""
        reads, keep, write = arrays
        return cls(reads, weights, lambda: Gates(keep, write), written=True)

    def correct(self, projection: str, base: mx.array, rows: slice | None = None) -> mx.array:
        """Add the correction to the output of one of the backbone's projections.

        If all reads are zero, the output stays as it is, bit for bit.

        Args:
            projection: `q_proj`, `k_proj`, `v_proj`, `qkv_proj` or `o_proj`.
            base: `[B, T, width]`, the output of the projection; the result has the same shape and dtype.
            rows: For a projection that is split over several processes, the part of the width in this process.
        """
        weight = self._weights.held_correction(projection, rows)
        if projection == "o_proj" and self._weights.output_norm is not None:
            delta = mx.fast.rms_norm((self._reads @ weight).astype(mx.float32), *self._weights.output_norm)
            return base + delta.astype(base.dtype)
        if base.dtype != weight.dtype:
            return base + (self._reads @ weight).astype(base.dtype)
        return mx.addmm(base, self._reads, weight)
