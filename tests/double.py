"""Run the package in float64, for finite differences: every float32 of the code becomes float64.

MLX computes in float64 on a CPU, except for a few functions that are float32 inside. This module replaces those by
others of MLX. No function of this package or of mlx-lm is replaced.
"""

import math

import mlx.core as mx
import pytest


def use_float64(patch: pytest.MonkeyPatch) -> None:
    """Make `mx.float32` mean float64, and all functions exact to float64, until the patch ends."""
    float64 = mx.float64
    zeros = mx.zeros
    patch.setattr(mx, "float32", float64)
    patch.setattr(mx, "zeros", lambda shape, dtype=float64, **options: zeros(shape, dtype, **options))
    for name in ("exp", "sigmoid", "softmax", "logsumexp", "logaddexp"):
        patch.setattr(mx, name, globals()[f"_{name}"])
    patch.setattr(mx.fast, "rms_norm", _rms_norm)
    patch.setattr(mx.fast, "scaled_dot_product_attention", _attention)


def _exp(x: mx.array) -> mx.array:
    return mx.power(mx.array(math.e, mx.float64), x)


def _sigmoid(x: mx.array) -> mx.array:
    return 0.5 * (1 + mx.tanh(0.5 * x))


def _softmax(x: mx.array, axis: int = -1, precise: bool = False) -> mx.array:
    exponentials = _exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def _logsumexp(x: mx.array, axis: int = -1, keepdims: bool = False) -> mx.array:
    largest = x.max(axis=axis, keepdims=True)
    total = mx.log(_exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return total if keepdims else total.squeeze(axis)


def _logaddexp(x: mx.array, y: mx.array | float) -> mx.array:
    return mx.maximum(x, y) + mx.log1p(_exp(-mx.abs(x - y)))


def _rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    return x * mx.rsqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: str | None, sinks: None
) -> mx.array:
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (mx.repeat(x, repeats, axis=1) for x in (keys, values))
    scores = scale * queries @ keys.swapaxes(-1, -2)
    if mask == "causal":
        later = mx.arange(keys.shape[2]) > mx.arange(queries.shape[2])[:, None]
        scores = mx.where(later, -1e30, scores)
    return _softmax(scores) @ values
