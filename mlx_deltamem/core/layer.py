"""The memory of one attention layer: it projects the inputs, reads the state with each token and writes it.

For the input `x` of each token, with the weights of the adapter and the state `S` of each head (facts.md 1.2 and 1.3):

    raw q, k, v, β, λ = x times `memory_q_proj`, `memory_k_proj`, `memory_v_proj`, `beta_proj`, `lambda_proj`
    read, S           = the recurrence over q, k, v and the gates (`recurrence/gates.py`, `recurrence/definition.py`)
    corrections       = alpha / rank * (read times `delta_q_proj`, ... `delta_o_proj`)

The corrections are added to the outputs of the backbone's projections (`reads.py`, `attention.py`).
"""

import functools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.core.access import Access, WriteUnits, both
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.fields import HEADS
from mlx_deltamem.core.key_shift import square, token_before
from mlx_deltamem.core.late import LateWrite, late_states
from mlx_deltamem.core.past import LayerPass
from mlx_deltamem.core.reads import Gates, PackedWeights, Reads
from mlx_deltamem.core.shapes import AttentionShape, inactive_parameters, parameter_shapes
from mlx_deltamem.core.watched import Watched
from mlx_deltamem.recurrence.engines import Engine, engine_for
from mlx_deltamem.recurrence.gates import gates
from mlx_deltamem.recurrence.kernels.build import on_gpu
from mlx_deltamem.recurrence.ops import OpsEngine

# The sigmoid of -_SHUT is exactly 0 in float32, and _SHUT is finite in every dtype.
_SHUT = 1e4


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes tokens that a pass has projected, for `LayerPass`."""

    memory: "DeltaMemory"
    engine: Engine
    weights: PackedWeights

    def __call__(self, projected: mx.array, state: mx.array, access: Access) -> mx.array:
        return self.memory.write(self.engine, self.weights, projected, state, access)


class DeltaMemory(Watched):
    """The adapter weights of one layer and their computation (arXiv 2605.12357, section 3).

    The weights are plain arrays and not `nn.Linear`, so that quantising a model or adding LoRA to it does not change
    them. They have the names of the reference's files (`parameter_shapes`). The memory has arrays of its own, which
    share their numbers with those it was made from until one side is changed in place.

    Args:
        config: The adapter's configuration.
        shape: The widths of the attention layer.
        weights: The tensors of the layer. Those without an effect (`inactive_parameters`) are not used.
    """

    def __init__(self, config: DeltaMemConfig, shape: AttentionShape, weights: Mapping[str, mx.array]):
        super().__init__()  # type: ignore[no-untyped-call]  # mlx does not annotate it
        self.config = config
        self.variant = config.variant
        self.shape = shape
        inactive = inactive_parameters(config)
        for name in parameter_shapes(config, shape):
            if name not in inactive:
                setattr(self, name, mx.array(weights[name]))
        # The names of the backbone's projections that are corrected.
        self.corrected = frozenset(
            name for name, heads in self._projections().items() if any(head in config.delta_heads for head in heads)
        )
        # Those that are corrected during the call of the attention layer and not after it.
        self.corrected_inside = self.corrected - {"o_proj"}
        self._cached_weights: PackedWeights | None = None
        # Weak, because the writer has the memory.
        self._last_writer: weakref.ref[_Writer] | None = None

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of the layer's state without the batch axis (`DeltaMemConfig.state_shape`)."""
        return self.config.state_shape

    def read_and_write(self, x: mx.array, state: mx.array, access: Access) -> tuple[Reads, mx.array]:
        """Run the tokens of one pass through the memory.

        Args:
            x: `[B, T, hidden]`, the inputs of the attention layer.
            state: `[B, *state_shape]` float32, the states before the first token.
            access: What the tokens may do.

        Returns:
            What the tokens read, and the states after the last token.
        """
        reads, after = self.read_before_write(x, state, access)
        if isinstance(after, LateWrite):
            (after,) = late_states({0: after}, both(access.mask, access.written))[0].values()
        return reads, after

    def read_before_write(self, x: mx.array, state: mx.array, access: Access) -> tuple[Reads, mx.array | LateWrite]:
        """`read_and_write`, in which a single token may be left to write: see `late_states`."""
        weights = self.packed_weights(x.dtype)
        engine = engine_for(self.variant, x.dtype, self.training, access.mask is not None)
        if not access.writing:
            gates_of = functools.partial(self._unused_gates, x, weights)
            reads = self._read(engine, x @ weights.queries, state, access, x, weights)
            return Reads(reads, weights, gates_of, written=False, inputs=x), state
        projected = x @ weights.inputs
        # In training, the projections would keep the graph of the step.
        layer_pass = None if self.training else LayerPass(self._writer(engine, weights), projected, access)
        after: mx.array | LateWrite
        if x.shape[1] == 1 and access.units is None and isinstance(engine, OpsEngine):
            reads = self._read(engine, projected, state, access, x, weights)
            after = LateWrite(engine, weights, projected, state)
        elif access.units is None:
            reads, after = self._write_tokens(engine, projected, state, access, weights)
            reads = self._let_through(reads, x, weights)
        else:
            reads = self._read(engine, projected, state, access, x, weights)
            after = self._write_means(projected, state, access.units, access.mask, weights)
        gates_of = functools.partial(self._gates, projected, weights.gate_bias)
        return Reads(reads, weights, gates_of, True, access.written, x, layer_pass), after

    def write(
        self, engine: Engine, weights: PackedWeights, projected: mx.array, state: mx.array, access: Access
    ) -> mx.array:
        """The states after tokens that have been projected `[B, T, P]` with these weights."""
        if access.units is None:
            return self._write_tokens(engine, projected, state, access, weights)[1]
        return self._write_means(projected, state, access.units, access.mask, weights)

    def _writer(self, engine: Engine, weights: PackedWeights) -> _Writer:
        """The object of the passes with this engine and these weights; a new one if none of them is in use."""
        writer = None if self._last_writer is None else self._last_writer()
        # A copy of the memory begins with the writer of the original.
        if writer is None or writer.weights is not weights or writer.engine is not engine or writer.memory is not self:
            writer = _Writer(self, engine, weights)
            self._last_writer = weakref.ref(writer)
        return writer

    def _write_tokens(
        self, engine: Engine, projected: mx.array, state: mx.array, access: Access, weights: PackedWeights
    ) -> tuple[mx.array, mx.array]:
        """Read with every token and write the tokens of `access.written`; returns the reads and the new states."""
        if access.written is None:
            return self._scan(engine, projected, state, access.mask, weights)
        idle = mx.where(access.written[..., None], projected, self._idle_gates(projected.dtype))
        first_gate = 3 * self.variant.width
        projected = mx.concatenate([projected[..., :first_gate], idle[..., first_gate:]], axis=-1)
        reads, new_state = self._scan(engine, projected, state, access.mask, weights, access.written)
        # A row that writes nothing keeps its state bit for bit, also where an engine's factor is not exactly 1.
        writes = access.written.any(axis=1)[:, None, None, None]
        return reads, mx.where(writes, new_state, state)

    def _read(
        self,
        engine: Engine,
        projected: mx.array,
        state: mx.array,
        access: Access,
        x: mx.array,
        weights: PackedWeights,
    ) -> mx.array:
        """The reads `[B, T, H * r]` of tokens that read a state and leave it as it is, through the read gates."""
        if x.shape[1] == 1 and isinstance(engine, OpsEngine):
            # Each operation of MLX costs more than its arithmetic here, views included, so one function does it all.
            projection, bias = weights.read_gate or (None, None)
            gate = None if projection is None else x @ projection
            return engine.read_token(projected, state, access.mask, gate, bias)
        matrix = state if weights.key_shift is None else square(state)
        return self._let_through(engine.read(projected, matrix, access.mask), x, weights)

    def _let_through(self, reads: mx.array, x: mx.array, weights: PackedWeights) -> mx.array:
        """The reads `[B, T, H * r]`, multiplied by the read gates if the adapter has them."""
        if weights.read_gate is None:
            return reads
        projection, bias = weights.read_gate
        gate = mx.sigmoid((x @ projection).astype(mx.float32) + bias).astype(reads.dtype)
        by_head = reads.reshape(*reads.shape[:-1], self.config.num_state_heads, -1) * gate[..., None]
        return by_head.reshape(reads.shape)

    def _idle_gates(self, dtype: mx.Dtype) -> mx.array:
        """Projections `[P]` of a token that leaves the state as it is: its gates are exactly β = 0 and λ = 1."""
        variant = self.variant
        beta = mx.full((3 * variant.width + variant.gates,), -_SHUT, dtype)
        return mx.concatenate([beta, mx.full((variant.gates,), _SHUT, dtype)]) if variant.free_lambda else beta

    def _write_means(
        self, projected: mx.array, state: mx.array, units: WriteUnits, mask: mx.array | None, weights: PackedWeights
    ) -> mx.array:
        """The states after the units are written, from the projections `[B, T, P]` of the tokens."""
        if mask is not None:
            # Padding belongs to no unit, and may hold NaN.
            projected = mx.where(mask[..., None], projected, 0)
        # The projections are linear, so the projection of a mean is the mean of the projections.
        means = units.weights @ projected.astype(mx.float32)
        if units.carried is not None:
            means = means + units.carried.pop(id(self), 0.0)
            if not units.complete:
                units.carried[id(self)] = means
                # Evaluating the state then also evaluates the sums, so that the graph does not grow over the calls.
                unchanged: mx.array = mx.depends(state, means)
                return unchanged
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
        """`Engine.scan`, with shifted keys if the adapter has a key shift (`key_shift.py`).

        Args:
            written: `[B, T]` bool, the tokens that are written; None: all tokens that are not masked.
        """
        if weights.key_shift is None:
            return engine.scan(projected, weights.gate_bias, state, mask)
        width = self.variant.width
        queries, keys, others = mx.split(projected, [width, 2 * width], axis=-1)
        last = state[:, :, self.config.rank :].reshape(-1, 1, width).astype(projected.dtype)
        before, last = token_before(queries, last, both(mask, written))
        keys = keys + weights.key_shift.astype(projected.dtype) * before
        projected = mx.concatenate([queries, keys, others], axis=-1)
        reads, matrix = engine.scan(projected, weights.gate_bias, square(state), mask)
        row = last.astype(mx.float32).reshape(-1, self.config.num_state_heads, 1, self.config.rank)
        return reads, mx.concatenate([matrix, row], axis=2)

    def _unused_gates(self, x: mx.array, weights: PackedWeights) -> Gates:
        return self._gates(x @ weights.inputs, weights.gate_bias)

    def _gates(self, projected: mx.array, gate_bias: mx.array) -> Gates:
        keep, _, write = gates(projected[..., 3 * self.variant.width :], gate_bias, self.variant)
        return Gates(keep, write)

    def packed_weights(self, dtype: mx.Dtype) -> PackedWeights:
        """The weights for activations of this dtype. They are made again only after a weight may have changed.

        As long as somebody holds an array of this module, it may change unseen, and they are made for each pass.
        """
        packed = self._cached_weights
        if packed is None or packed.inputs.dtype != dtype or self.may_have_changed():
            packed = self._pack(dtype)
            is_seen = self.watch()
            # In training, each step has new weights. To keep the packed ones would keep the whole graph of the step.
            self._cached_weights = None if self.training or not is_seen or not packed.evaluate() else packed
        return packed

    def _pack(self, dtype: mx.Dtype) -> PackedWeights:
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
            inputs=_columns(packed),
            queries=_columns(packed[: config.width]),
            gate_bias=mx.concatenate([self[f"{gate}_bias"].astype(mx.float32) for gate in gates]),
            corrections={
                # Contiguous, because a transposed view makes a single token 25 % slower.
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
        """For each projection of the backbone, the correction heads for it."""
        if self.shape.packed:
            return {"qkv_proj": ("q", "k", "v"), "o_proj": ("o",)}
        return {f"{head}_proj": (head,) for head in HEADS}

    def scaled_head(self, head: str) -> mx.array:
        """A correction head times its scale, `[width, H * r]` float32, in the layout of the backbone's projection."""
        if head not in self.config.delta_heads:
            return mx.zeros((self.shape.width(head), self.config.width))
        weight: mx.array = self[f"delta_{head}_proj"].astype(mx.float32) * self._scale(head)
        if head == "q" and self.shape.gated_heads:
            queries = weight.reshape(self.shape.gated_heads, -1, self.config.width)
            weight = mx.concatenate([queries, mx.zeros_like(queries)], axis=1).reshape(-1, self.config.width)
        return weight

    def _scale(self, head: str) -> mx.array | float:
        """The factor of a correction head."""
        # The rank of one state head, also if there are several.
        scale = self.config.alpha / self.config.rank
        if not self.config.trainable_delta_scale:
            return scale
        raw = self.delta_scale_raw.astype(mx.float32)
        index = HEADS.index(head) if self.config.delta_scale_granularity == "head" else 0
        learned: mx.array = scale * self.config.delta_scale_max * mx.sigmoid(raw[index])
        return learned


def _columns(weights: mx.array) -> mx.array:
    """The transposed weights. On a CPU they are contiguous, because a transposed view makes a single token slower."""
    return weights.T if on_gpu() else mx.contiguous(weights.T)
