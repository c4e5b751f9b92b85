"""The memory of one attention layer: adapter weights, projections, gates, what is read and what is written."""

import functools
import operator
from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.access import Access, WriteUnits
from mlx_deltamem.core.config import HEADS, DeltaMemConfig
from mlx_deltamem.core.key_shift import token_before
from mlx_deltamem.core.reads import Gates, PackedWeights, Reads
from mlx_deltamem.core.shapes import AttentionShape, inactive_parameters, parameter_shapes
from mlx_deltamem.recurrence.engines import Engine, engine_for
from mlx_deltamem.recurrence.gates import gates

# The sigmoid of its negative is exactly 0 in float32; the number itself is finite in every dtype.
_SHUT = 1e4


class DeltaMemory(nn.Module):
    """The adapter weights of one layer and what they compute (arXiv 2605.12357, section 3).

    The weights are plain arrays rather than `nn.Linear`, so that quantising a model or adding LoRA to it leaves them
    alone. They are named as in the reference's files and listed by `parameter_shapes`.

    Args:
        config: The adapter's configuration.
        shape: The widths of the attention layer.
        weights: The layer's tensors; those without an effect are left out.
    """

    def __init__(self, config: DeltaMemConfig, shape: AttentionShape, weights: Mapping[str, mx.array]):
        super().__init__()
        self.config = config
        self.variant = config.variant
        self.shape = shape
        inactive = inactive_parameters(config)
        for name in parameter_shapes(config, shape):
            if name not in inactive:
                setattr(self, name, weights[name])
        # The backbone's projections whose output is corrected, by name.
        self.corrected = frozenset(
            name for name, heads in self._projections().items() if any(head in config.delta_heads for head in heads)
        )
        self._cached_weights: PackedWeights | None = None

    def __setattr__(self, name: str, value: object) -> None:
        # `*=` and the like change an array in place and then set it.
        if name in self:
            self._cached_weights = None
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> mx.array:
        # Whoever has a weight can change numbers of it in place, so that what was made of it may be out of date.
        self._cached_weights = None
        return super().__getattr__(name)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of the layer's state without the batch axis, `DeltaMemConfig.state_shape`."""
        return self.config.state_shape

    def read_and_write(self, x: mx.array, state: mx.array, access: Access) -> tuple[Reads, mx.array]:
        """Run a stretch of tokens through the memory.

        Args:
            x: `[B, T, hidden]`, the input of the attention layer.
            state: `[B, *state_shape]` float32, the states before the first token.
            access: What the tokens may do.

        Returns:
            What the tokens read, and the new states.
        """
        weights = self.packed_weights(x.dtype)
        engine = engine_for(self.variant, x.dtype, self.training, access.mask is not None)
        if not access.writing:
            gates_of = functools.partial(self._unused_gates, x, weights)
            reads = engine.read(x @ weights.queries, self._matrix(state), access.mask)
            reads = self._let_through(reads, x, weights)
            return Reads(reads, weights, gates_of, written=False), state
        projected = x @ weights.inputs
        if access.units is None:
            reads, state = self._write_tokens(engine, projected, state, access, weights)
        else:
            reads = engine.read(projected, self._matrix(state), access.mask)
            state = self._write_means(projected, state, access.units, weights)
        gates_of = functools.partial(self._gates, projected, weights.gate_bias)
        reads = self._let_through(reads, x, weights)
        return Reads(reads, weights, gates_of, written=True, written_tokens=access.written), state

    def _write_tokens(
        self, engine: Engine, projected: mx.array, state: mx.array, access: Access, weights: PackedWeights
    ) -> tuple[mx.array, mx.array]:
        """Read with every token and write the tokens that `access` allows; returns the reads and the new state."""
        if access.written is None:
            return self._scan(engine, projected, state, access.mask, weights)
        idle = mx.where(access.written[..., None], projected, self._idle_gates(projected.dtype))
        first_gate = 3 * self.variant.width
        projected = mx.concatenate([projected[..., :first_gate], idle[..., first_gate:]], axis=-1)
        reads, new_state = self._scan(engine, projected, state, access.mask, weights, access.written)
        # A row that writes nothing keeps its state bit for bit, whatever the engine multiplies it by.
        writes = access.written.any(axis=1)[:, None, None, None]
        return reads, mx.where(writes, new_state, state)

    def _let_through(self, reads: mx.array, x: mx.array, weights: PackedWeights) -> mx.array:
        """The reads `[B, T, H * r]`, each multiplied by its token's read gate if the adapter has read gates."""
        if weights.read_gate is None:
            return reads
        projection, bias = weights.read_gate
        gate = mx.sigmoid((x @ projection).astype(mx.float32) + bias).astype(reads.dtype)
        by_head = reads.reshape(*reads.shape[:-1], self.config.num_state_heads, -1) * gate[..., None]
        return by_head.reshape(reads.shape)

    def _idle_gates(self, dtype: mx.Dtype) -> mx.array:
        """`[P]`: projections whose gates leave the state as it is, β = 0 and λ = 1 exactly, in every engine."""
        variant = self.variant
        beta = mx.full((3 * variant.width + variant.gates,), -_SHUT, dtype)
        return mx.concatenate([beta, mx.full((variant.gates,), _SHUT, dtype)]) if variant.free_lambda else beta

    def _write_means(self, projected: mx.array, state: mx.array, units: WriteUnits, weights: PackedWeights) -> mx.array:
        """The state after the units are written; `projected` are the tokens' projections `[B, T, P]`."""
        # The projections are linear: the projection of a mean is the mean of the projections.
        means = units.weights @ projected.astype(mx.float32)
        if units.carried is not None:
            means = means + units.carried.pop(id(self), 0.0)
            if not units.complete:
                units.carried[id(self)] = means
                # Whoever evaluates the state now evaluates the sums, and with them the end of this call's graph.
                return mx.depends(state, means)
        engine = engine_for(self.variant, means.dtype, self.training, masked=True)
        return self._scan(engine, means, state, units.mask, weights)[1]

    def _scan(
        self,
        engine: Engine,
        projected: mx.array,
        state: mx.array,
        mask: mx.array | None,
        weights: PackedWeights,
        written: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """`Engine.scan`, with keys that know the token written before where the adapter has a key shift."""
        if weights.key_shift is None:
            return engine.scan(projected, weights.gate_bias, state, mask)
        width = self.variant.width
        queries, keys, others = mx.split(projected, [width, 2 * width], axis=-1)
        last = state[:, :, self.config.rank :].reshape(-1, 1, width).astype(projected.dtype)
        before, last = token_before(
            queries, last, mask if written is None else (written if mask is None else mask & written)
        )
        keys = keys + weights.key_shift.astype(projected.dtype) * before
        projected = mx.concatenate([queries, keys, others], axis=-1)
        reads, matrix = engine.scan(projected, weights.gate_bias, self._matrix(state), mask)
        row = last.astype(mx.float32).reshape(-1, self.config.num_state_heads, 1, self.config.rank)
        return reads, mx.concatenate([matrix, row], axis=2)

    def _matrix(self, state: mx.array) -> mx.array:
        """`[B, H, r, r]`: the state without the row that a key shift adds."""
        return state[:, :, : self.config.rank] if self.config.key_shift else state

    def _unused_gates(self, x: mx.array, weights: PackedWeights) -> Gates:
        return self._gates(x @ weights.inputs, weights.gate_bias)

    def _gates(self, projected: mx.array, gate_bias: mx.array) -> Gates:
        keep, _, write = gates(projected[..., 3 * self.variant.width :], gate_bias, self.variant)
        return Gates(keep, write)

    def packed_weights(self, dtype: mx.Dtype) -> PackedWeights:
        """The weights as a pass over activations of this type uses them, made anew only when one was replaced."""
        sources = list(self.values())
        packed = self._cached_weights
        if packed is None or packed.inputs.dtype != dtype or any(map(operator.is_not, packed.sources, sources)):
            packed = self._pack(sources, dtype)
            # In training every step brings new weights, and keeping them would keep the step's whole graph.
            self._cached_weights = None if self.training or not packed.evaluate() else packed
        return packed

    def _pack(self, sources: list[mx.array], dtype: mx.Dtype) -> PackedWeights:
        config = self.config
        gates = ("beta", "lambda") if self.variant.free_lambda else ("beta",)
        inputs = [self[f"memory_{name}_proj"] for name in "qkv"] + [self[f"{gate}_proj"] for gate in gates]
        norm = (
            (self.delta_o_rmsnorm_weight.astype(mx.float32), config.delta_o_rmsnorm_eps)
            if config.delta_o_rmsnorm
            else None
        )
        packed = mx.concatenate(inputs).astype(dtype)
        return PackedWeights(
            sources=sources,
            inputs=packed.T,
            queries=packed[: config.width].T,
            gate_bias=mx.concatenate([self[f"{gate}_bias"].astype(mx.float32) for gate in gates]),
            corrections={
                # Not a transposed view, which costs a single token a quarter more.
                projection: mx.contiguous(mx.concatenate([self.scaled_head(head) for head in heads]).astype(dtype).T)
                for projection, heads in self._projections().items()
                if projection in self.corrected
            },
            output_norm=norm,
            read_gate=(
                (self.read_gate_proj.astype(dtype).T, self.read_gate_bias.astype(mx.float32))
                if config.read_gate
                else None
            ),
            key_shift=self.key_shift.astype(mx.float32) if config.key_shift else None,
        )

    def _projections(self) -> dict[str, tuple[str, ...]]:
        if self.shape.packed:
            return {"qkv_proj": ("q", "k", "v"), "o_proj": ("o",)}
        return {f"{head}_proj": (head,) for head in HEADS}

    def scaled_head(self, head: str) -> mx.array:
        """`[width, H * r]` float32: a correction head with its factors, laid out as the backbone's projection is."""
        if head not in self.config.delta_heads:
            return mx.zeros((self.shape.width(head), self.config.width))
        weight = self[f"delta_{head}_proj"].astype(mx.float32) * self._scale(head)
        if head == "q" and self.shape.gated_heads:
            queries = weight.reshape(self.shape.gated_heads, -1, self.config.width)
            weight = mx.concatenate([queries, mx.zeros_like(queries)], axis=1).reshape(-1, self.config.width)
        return weight

    def _scale(self, head: str) -> mx.array | float:
        # By the rank of one state head, also when there are several.
        scale = self.config.alpha / self.config.rank
        if not self.config.trainable_delta_scale:
            return scale
        raw = self.delta_scale_raw.astype(mx.float32)
        index = HEADS.index(head) if self.config.delta_scale_granularity == "head" else 0
        return scale * self.config.delta_scale_max * mx.sigmoid(raw[index])
