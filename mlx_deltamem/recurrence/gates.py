"""From the projections of tokens to the inputs of the recurrence: unit vectors, values and gates.

The adapter projects each input of the attention layer to a raw query, key and value and to raw gates. For each head:

    q, k = tanh(raw) / |tanh(raw)|           (or the raw vectors, if the adapter does not normalise)
    β    = sigmoid(raw β + bias)
    λ    = 1 - β                             (or sigmoid(raw λ + bias), if λ is free)

The gates of the recurrence follow from β and λ by `state_update_mode`; `write` is β in all modes:

    standard         keep = λ    erase = β
    lambda_outside   keep = λ    erase = λ β
    no_lambda        keep = 1    erase = β

Source: arXiv 2605.12357, section 3; facts.md 1.2.
"""

import mlx.core as mx

from mlx_deltamem.recurrence.variant import Variant

# Memory queries and keys are divided by their norm, or by this where the norm is smaller.
SMALLEST_NORM = 1e-6


def unit_vectors(raw: mx.array, variant: Variant) -> mx.array:
    """Memory queries or keys `[B, T, H, r]` float32, from their projections `[B, T, W]`."""
    x = by_head(raw, variant)
    if not variant.normalized:
        return x
    x = mx.tanh(x)
    return x / norm((x * x).sum(axis=-1, keepdims=True))


def norm(square: mx.array) -> mx.array:
    """The number to divide a vector by, from its squared norm: the norm, or `SMALLEST_NORM` where it is smaller.

    The maximum is taken before the root, so that the gradient is finite for vectors of zeros too.
    """
    return mx.sqrt(mx.maximum(square, SMALLEST_NORM**2))


def by_head(raw: mx.array, variant: Variant) -> mx.array:
    """`[..., H * n]` split by head: `[..., H, n]` float32."""
    return raw.astype(mx.float32).reshape(*raw.shape[:-1], variant.heads, -1)


def gates(raw: mx.array, bias: mx.array, variant: Variant) -> tuple[mx.array, mx.array, mx.array]:
    """The gates keep, erase and write of the recurrence.

    Args:
        raw: `[B, T, G or 2 G]`, the projections to β and, if it is free, λ.
        bias: `[G or 2 G]` float32.
        variant: The adapter's variant of the recurrence.

    Returns:
        Three arrays `[B, T, H, r or 1]` float32.
    """
    opened = mx.sigmoid(raw.astype(mx.float32) + bias)
    beta = by_head(opened[..., : variant.gates], variant)
    lambda_ = by_head(opened[..., variant.gates :], variant) if variant.free_lambda else 1.0 - beta
    keep, erase = keep_and_erase(beta, lambda_, variant)
    return mx.broadcast_to(keep, beta.shape), erase, beta


def keep_and_erase(beta: mx.array, lambda_: mx.array, variant: Variant) -> tuple[mx.array, mx.array]:
    """The gates keep and erase, from β and λ by `Variant.mode`; a keep of 1 for all tokens is a scalar."""
    if variant.mode == "standard":
        return lambda_, beta
    return (lambda_, lambda_ * beta) if variant.mode == "lambda_outside" else (mx.array(1.0), beta)
