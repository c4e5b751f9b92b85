"""The part of an adapter's configuration that the recurrence needs. It is read without importing MLX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """The part of an adapter's configuration that the recurrence needs.

    Attributes:
        rank: r, the width of a state.
        heads: H, the number of states in a layer.
        normalized: Whether queries and keys pass through tanh and an L2 norm.
        rankwise: Whether there is one gate for each row of a state; otherwise there is one for each head.
        free_lambda: Whether λ has its own projection; otherwise it is 1 - β.
        mode: `state_update_mode` of the configuration: `standard`, `lambda_outside` or `no_lambda`.
    """

    rank: int
    heads: int
    normalized: bool
    rankwise: bool
    free_lambda: bool
    mode: str

    @property
    def width(self) -> int:
        """W = H * r, the number of columns of the queries, of the keys and of the values."""
        return self.heads * self.rank

    @property
    def gates(self) -> int:
        """G, the number of columns of β, and of λ: W or H."""
        return self.width if self.rankwise else self.heads

    @property
    def columns(self) -> int:
        """P = 3 W + G (or 2 G), the columns of a token's projection: query, key, value, β and, if it is free, λ."""
        return 3 * self.width + (2 if self.free_lambda else 1) * self.gates
