"""From the raw projections of tokens to what the recurrence takes: unit vectors, values and gates."""

from dataclasses import dataclass

import mlx.core as mx

# The floor on the norm of memory queries and keys.
SMALLEST_NORM = 1e-6


@dataclass(frozen=True)
class Variant:
    """The part of an adapter's configuration that the recurrence needs.

    Attributes:
        rank, heads: r and H.
        normalized: Queries and keys pass through tanh and an L2 norm.
        rankwise: One gate for each row of a state; else one for each head.
        free_lambda: λ has a gate of its own; else it is 1 - β.
        mode: `state_update_mode` of the configuration.
    """

    rank: int
    heads: int
    normalized: bool
    rankwise: bool
    free_lambda: bool
    mode: str

    @property
    def width(self) -> int:
        """W = H * r, the columns of the queries, of the keys and of the values."""
        return self.heads * self.rank

    @property
    def gates(self) -> int:
        """G, the columns of each gate: W or H."""
        return self.width if self.rankwise else self.heads

    @property
    def columns(self) -> int:
        """P = 3 W + G or 2 G, the columns of a token's projection: query, key, value, β and, if it is free, λ."""
        return 3 * self.width + (2 if self.free_lambda else 1) * self.gates


def unit_vectors(raw: mx.array, variant: Variant) -> mx.array:
    """Memory queries or keys `[B, T, H, r]` float32 from their projections `[B, T, W]`."""
    x = by_head(raw, variant)
    if not variant.normalized:
        return x
    x = mx.tanh(x)
    return x / norm((x * x).sum(axis=-1, keepdims=True))


def norm(square: mx.array) -> mx.array:
    """The norm that vectors are divided by, from its square; its gradient is finite for vectors of zeros too."""
    return mx.sqrt(mx.maximum(square, SMALLEST_NORM**2))


def by_head(raw: mx.array, variant: Variant) -> mx.array:
    """`[..., H, n]` float32 from `[..., H * n]`."""
    return raw.astype(mx.float32).reshape(*raw.shape[:-1], variant.heads, -1)


def gates(raw: mx.array, bias: mx.array, variant: Variant) -> tuple[mx.array, mx.array, mx.array]:
    """The gates keep, erase and write `[B, T, H, r or 1]` float32, from their projections `[B, T, G or 2 G]`."""
    opened = mx.sigmoid(raw.astype(mx.float32) + bias)
    beta = by_head(opened[..., : variant.gates], variant)
    lambda_ = by_head(opened[..., variant.gates :], variant) if variant.free_lambda else 1.0 - beta
    keep, erase = keep_and_erase(beta, lambda_, variant)
    return mx.broadcast_to(keep, beta.shape), erase, beta


def keep_and_erase(beta: mx.array, lambda_: mx.array, variant: Variant) -> tuple[mx.array, mx.array]:
    """What the gates β and λ make of the state, by `state_update_mode`."""
    if variant.mode == "standard":
        return lambda_, beta
    return (lambda_, lambda_ * beta) if variant.mode == "lambda_outside" else (mx.array(1.0), beta)
