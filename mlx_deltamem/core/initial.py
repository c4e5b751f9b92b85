"""The weights of an adapter before training."""

import math
from collections.abc import Callable, Mapping

import mlx.core as mx

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, parameter_shapes
from mlx_deltamem.recurrence.gates import SMALLEST_NORM

# The initial bias of a read gate. Its sigmoid is 0.95, so the gate is almost open at the start.
OPEN_GATE = 3.0


def initial_parameters(
    config: DeltaMemConfig, shape: AttentionShape, frozen: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """The untrained weights of one layer, float32 (facts.md 1.4).

    Args:
        config: The configuration; `output_init` says how the correction heads start.
        shape: The widths of the attention layer.
        frozen: By head, the backbone's projection weights `[out, in]`; needed where `output_init` is `base_slice` or
            `base_slice_fixed`.
    """
    weights: dict[str, mx.array] = {}
    for name, size in parameter_shapes(config, shape).items():
        head = name.removeprefix("delta_").removesuffix("_proj")
        if name.startswith("memory_"):
            weights[name] = mx.random.uniform(-1.0, 1.0, size) / math.sqrt(shape.hidden)
        elif head in config.delta_heads:
            weights[name] = _initial_head(config, head, size, frozen)
        else:
            initial_value = _INITIAL_VALUES.get(name)
            weights[name] = mx.zeros(size) if initial_value is None else mx.full(size, initial_value(config))
    return weights


def _initial_head(config: DeltaMemConfig, head: str, size: tuple[int, ...], frozen: Mapping[str, mx.array]) -> mx.array:
    if config.output_init == "zero":
        return mx.zeros(size)
    if config.output_init == "random":
        return mx.random.uniform(-1.0, 1.0, size) * (config.online_gain / math.sqrt(size[1]))
    projection = frozen[head]
    columns = min(config.rank, projection.shape[1])
    if config.output_init == "base_slice_fixed":
        columns = min(columns, config.base_slice_ref_width)
    start = projection[:, :columns].astype(mx.float32)
    start = start / mx.maximum(mx.linalg.norm(start, axis=0, keepdims=True), SMALLEST_NORM)
    return mx.pad(start * config.online_gain, [(0, 0), (0, size[1] - columns)])


# The other tensors start from zeros.
_INITIAL_VALUES: dict[str, Callable[[DeltaMemConfig], float]] = {
    "beta_bias": lambda config: config.beta_bias_init,
    "lambda_bias": lambda config: -config.beta_bias_init,
    "read_gate_bias": lambda _: OPEN_GATE,
    "key_shift": lambda _: 1.0,
    "delta_o_rmsnorm_weight": lambda _: 1.0,
    # The inverse of scale = delta_scale_max * sigmoid(raw).
    "delta_scale_raw": lambda config: math.log(
        config.delta_scale_init / (config.delta_scale_max - config.delta_scale_init)
    ),
}
