"""The weights an untrained adapter starts from."""

import math
from collections.abc import Mapping

import mlx.core as mx

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, parameter_shapes
from mlx_deltamem.recurrence.gates import SMALLEST_NORM

# The initial bias of a read gate: its sigmoid is 0.95, so that the gate begins almost open.
OPEN_GATE = 3.0


def initial_parameters(
    config: DeltaMemConfig, shape: AttentionShape, frozen: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """Fresh, untrained weights of one layer, float32 (facts of the reference: section 1.4).

    Args:
        config: Says how the correction heads start (`output_init`).
        shape: The widths of the attention layer.
        frozen: The backbone's own projection weights `[out, in]` by head; used by the `base_slice` starts.
    """
    weights = {}
    for name, size in parameter_shapes(config, shape).items():
        head = name.removeprefix("delta_").removesuffix("_proj")
        if name.startswith("memory_"):
            weights[name] = mx.random.uniform(-1.0, 1.0, size) / math.sqrt(shape.hidden)
        elif head in config.delta_heads:
            weights[name] = _initial_head(config, size, frozen.get(head))
        else:
            weights[name] = mx.full(size, _INITIAL_VALUES.get(name, lambda _: 0.0)(config))
    return weights


def _initial_head(config: DeltaMemConfig, size: tuple[int, ...], frozen: mx.array | None) -> mx.array:
    if config.output_init == "zero":
        return mx.zeros(size)
    if config.output_init == "random":
        return mx.random.uniform(-1.0, 1.0, size) * (config.online_gain / math.sqrt(size[1]))
    columns = min(config.rank, frozen.shape[1])
    if config.output_init == "base_slice_fixed":
        columns = min(columns, config.base_slice_ref_width)
    start = frozen[:, :columns].astype(mx.float32)
    start = start / mx.maximum(mx.linalg.norm(start, axis=0, keepdims=True), SMALLEST_NORM)
    return mx.pad(start * config.online_gain, [(0, 0), (0, size[1] - columns)])


_INITIAL_VALUES = {
    "beta_bias": lambda config: config.beta_bias_init,
    "lambda_bias": lambda config: -config.beta_bias_init,
    "read_gate_bias": lambda _: OPEN_GATE,
    "key_shift": lambda _: 1.0,
    "delta_o_rmsnorm_weight": lambda _: 1.0,
    # The inverse of scale = max * sigmoid(raw).
    "delta_scale_raw": lambda config: math.log(
        config.delta_scale_init / (config.delta_scale_max - config.delta_scale_init)
    ),
}
