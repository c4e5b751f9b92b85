"""The widths of an attention layer of mlx-lm, and the shapes of the tensors that an adapter has for it."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.config import HEADS, DeltaMemConfig


@dataclass(frozen=True)
class AttentionShape:
    """The widths of an attention layer that a memory is attached to.

    Attributes:
        hidden: Width of the layer's input.
        q, k, v, o: Widths of the queries, keys, values and of the layer's output; 0 where it has no such projection.
        packed: One `qkv_proj` instead of `q_proj`, `k_proj` and `v_proj`.
        gated_heads: Where `q_proj` gives, head by head, queries and then a gate as wide: the number of heads, else 0.
    """

    hidden: int
    q: int
    k: int
    v: int
    o: int
    packed: bool = False
    gated_heads: int = 0

    def width(self, head: str) -> int:
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}[head]


def parameter_shapes(config: DeltaMemConfig, shape: AttentionShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor one layer of an adapter may hold (facts of the reference: section 1.7)."""
    width, gates = config.width, config.gate_width
    shapes: dict[str, tuple[int, ...]] = {f"memory_{name}_proj": (width, shape.hidden) for name in "qkv"}
    shapes |= {f"delta_{head}_proj": (shape.width(head), width) for head in HEADS}
    shapes |= {"beta_proj": (gates, shape.hidden), "beta_bias": (gates,)}
    if not config.couple_lambda:
        shapes |= {"lambda_proj": (gates, shape.hidden), "lambda_bias": (gates,)}
    if config.read_gate:
        shapes |= {
            "read_gate_proj": (config.num_state_heads, shape.hidden),
            "read_gate_bias": (config.num_state_heads,),
        }
    if config.key_shift:
        shapes["key_shift"] = (width,)
    if config.trainable_delta_scale:
        shapes["delta_scale_raw"] = (len(HEADS) if config.delta_scale_granularity == "head" else 1,)
    if config.delta_o_rmsnorm:
        shapes["delta_o_rmsnorm_weight"] = (shape.o,)
    return shapes


def inactive_parameters(config: DeltaMemConfig) -> set[str]:
    """Names of the tensors that an adapter may hold and that have no effect."""
    return {f"delta_{head}_proj" for head in HEADS if head not in config.delta_heads}


def attention_shape(attention: nn.Module) -> AttentionShape:
    """Measure an attention layer of mlx-lm.

    Raises:
        ValueError: It has no `q_proj` or `qkv_proj` and no `o_proj`, or packs them in a way that is not known.
    """
    packed = "qkv_proj" in attention
    if "o_proj" not in attention or not (packed or "q_proj" in attention):
        children = ", ".join(attention.children()) or "no modules"
        raise ValueError(f"{type(attention).__name__} has {children}; a memory needs o_proj and q_proj or qkv_proj")
    outputs, attended = _linear_shape(attention.o_proj)
    if packed:
        width, hidden = _linear_shape(attention.qkv_proj)
        keys = (width - attended) // 2
        if getattr(attention, "n_kv_heads", 0) * getattr(attention, "head_dim", 0) != keys:
            raise ValueError(f"{type(attention).__name__} packs its qkv_proj in an unknown way")
        return AttentionShape(hidden, attended, keys, keys, outputs, packed=True)
    queries, hidden = _linear_shape(attention.q_proj)
    keys, values = (_linear_shape(attention[name])[0] if name in attention else 0 for name in ("k_proj", "v_proj"))
    heads = _gated_heads(attention, queries, attended)
    return AttentionShape(hidden, queries // 2 if heads else queries, keys, values, outputs, gated_heads=heads)


def frozen_projections(attention: nn.Module, shape: AttentionShape) -> dict[str, mx.array]:
    """The weights `[out, in]` behind queries, keys, values and output, by head, dequantised."""
    if shape.packed:
        queries, keys, values = mx.split(_dense_weight(attention.qkv_proj), [shape.q, shape.q + shape.k])
        return {"q": queries, "k": keys, "v": values, "o": _dense_weight(attention.o_proj)}
    weights = {head: _dense_weight(attention[f"{head}_proj"]) for head in "qkvo" if f"{head}_proj" in attention}
    if shape.gated_heads:
        by_head = weights["q"].reshape(shape.gated_heads, 2, -1, shape.hidden)
        weights["q"] = by_head[:, 0].reshape(-1, shape.hidden)
    return weights


def _gated_heads(attention: nn.Module, queries: int, attended: int) -> int:
    """The heads whose queries are followed by a gate of the same width in `q_proj` (qwen3_next), or 0."""
    heads, width = getattr(attention, "num_attention_heads", 0), getattr(attention, "head_dim", 0)
    spread = shards(attention.q_proj)
    return heads * spread if queries == 2 * attended == 2 * heads * width * spread else 0


def _linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer: dense, quantised, with LoRA, or spread over several processes."""
    linear = getattr(linear, "linear", linear)
    outputs, inputs = linear.weight.shape
    if "scales" in linear:
        inputs = inputs * 32 // linear.bits
    if isinstance(linear, nn.AllToShardedLinear | nn.QuantizedAllToShardedLinear):
        outputs *= shards(linear)
    if isinstance(linear, nn.ShardedToAllLinear | nn.QuantizedShardedToAllLinear):
        inputs *= shards(linear)
    return outputs, inputs


def _dense_weight(linear: nn.Module) -> mx.array:
    linear = getattr(linear, "linear", linear)
    if shards(linear) > 1:
        raise ValueError("the model is spread over several processes; start a new adapter before it is, or from a file")
    if "scales" not in linear:
        return linear.weight
    mode = getattr(linear, "mode", "affine")
    return mx.dequantize(linear.weight, linear.scales, linear.get("biases"), linear.group_size, linear.bits, mode)


def shards(linear: nn.Module) -> int:
    # Not getattr, which takes its time to find that a module has no such attribute.
    group = vars(linear).get("group")
    return 1 if group is None else group.size()
