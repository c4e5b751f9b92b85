"""The widths of an attention layer of mlx-lm, and the shapes of an adapter's tensors for it."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.fields import HEADS


@dataclass(frozen=True)
class AttentionShape:
    """The widths of an attention layer.

    Attributes:
        hidden: The width of the layer's input.
        q, k, v, o: The widths of the queries, keys, values and the layer's output; 0 if the projection is missing.
        packed: Whether the layer has one `qkv_proj` instead of `q_proj`, `k_proj` and `v_proj`.
        gated_heads: The number of attention heads if the output of `q_proj` holds, for each head, the query and a gate
            of the same width (qwen3_next); else 0.
    """

    hidden: int
    q: int
    k: int
    v: int
    o: int
    packed: bool = False
    gated_heads: int = 0

    def width(self, head: str) -> int:
        """The width of the projection that a correction head (q, k, v or o) corrects."""
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o}[head]


def parameter_shapes(config: DeltaMemConfig, shape: AttentionShape) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that an adapter may have for one layer (facts.md 1.7)."""
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
    """The names of the tensors that an adapter may have although they have no effect."""
    return {f"delta_{head}_proj" for head in HEADS if head not in config.delta_heads}


def attention_shape(attention: nn.Module) -> AttentionShape:
    """Measure an attention layer of mlx-lm.

    Raises:
        ValueError: The layer has no `o_proj`, or neither `q_proj` nor `qkv_proj`, or it packs its `qkv_proj` in an
            unknown way.
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
            raise ValueError(
                f"{type(attention).__name__} packs its qkv_proj in an unknown way; expected queries, keys, values"
            )
        return AttentionShape(hidden, attended, keys, keys, outputs, packed=True)
    queries, hidden = _linear_shape(attention.q_proj)
    keys, values = (_linear_shape(attention[name])[0] if name in attention else 0 for name in ("k_proj", "v_proj"))
    heads = _gated_heads(attention, queries, attended)
    return AttentionShape(hidden, queries // 2 if heads else queries, keys, values, outputs, gated_heads=heads)


def frozen_projections(attention: nn.Module, shape: AttentionShape) -> dict[str, mx.array]:
    """By head (q, k, v, o), the dequantised projection weights `[out, in]` of the backbone."""
    if shape.packed:
        queries, keys, values = mx.split(_dense_weight(attention.qkv_proj), [shape.q, shape.q + shape.k])
        return {"q": queries, "k": keys, "v": values, "o": _dense_weight(attention.o_proj)}
    weights = {head: _dense_weight(attention[f"{head}_proj"]) for head in "qkvo" if f"{head}_proj" in attention}
    if shape.gated_heads:
        by_head = weights["q"].reshape(shape.gated_heads, 2, -1, shape.hidden)
        weights["q"] = by_head[:, 0].reshape(-1, shape.hidden)
    return weights


def _gated_heads(attention: nn.Module, queries: int, attended: int) -> int:
    """`AttentionShape.gated_heads`, from the widths of the queries and of the input of `o_proj`."""
    heads: int = getattr(attention, "num_attention_heads", 0)
    width: int = getattr(attention, "head_dim", 0)
    spread = shards(attention.q_proj)
    return heads * spread if queries == 2 * attended == 2 * heads * width * spread else 0


def _linear_shape(linear: nn.Module) -> tuple[int, int]:
    """The widths of the output and the input of a linear layer.

    The layer may be dense or quantised, with or without LoRA, and split over several processes.
    """
    linear = _without_lora(linear)
    outputs, inputs = linear.weight.shape
    if "scales" in linear:
        inputs = inputs * 32 // linear.bits
    if isinstance(linear, nn.AllToShardedLinear | nn.QuantizedAllToShardedLinear):
        outputs *= shards(linear)
    if isinstance(linear, nn.ShardedToAllLinear | nn.QuantizedShardedToAllLinear):
        inputs *= shards(linear)
    return outputs, inputs


def _without_lora(linear: nn.Module) -> nn.Module:
    """The linear layer inside a LoRA layer; any other layer as it is."""
    inner = getattr(linear, "linear", None)
    return inner if isinstance(inner, nn.Module) else linear


def _dense_weight(linear: nn.Module) -> mx.array:
    linear = _without_lora(linear)
    if shards(linear) > 1:
        raise ValueError(
            "the model is split over several processes, so its weights cannot be read; attach the new adapter before "
            "splitting the model, or attach an adapter from a file"
        )
    weight: mx.array = linear.weight
    if "scales" not in linear:
        return weight
    mode = getattr(linear, "mode", "affine")
    return mx.dequantize(weight, linear.scales, linear.get("biases"), linear.group_size, linear.bits, mode)


def shards(linear: nn.Module) -> int:
    """The number of processes that a linear layer is split over."""
    # Not getattr: it is slow for an attribute that a module does not have.
    group: mx.distributed.Group | None = vars(linear).get("group")
    return 1 if group is None else group.size()
