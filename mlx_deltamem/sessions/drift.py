"""How much of the memory a turn kept and how much it overwrote."""

import math
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Drift:
    """What one turn did to the memory, by layer index.

    Attributes:
        kept: The mean keep gate over the tokens of the message and of what the template puts around it (the tokens of
            the reply are run one by one and are not measured); 1.0 for a turn that wrote nothing.
        changed: How far the whole turn moved the state, relative to the larger of its norms before and after:
            0 = not at all, above 1 = it points elsewhere.
    """

    kept: dict[int, float]
    changed: dict[int, float]

    @property
    def half_life(self) -> dict[int, float]:
        """By layer, after how many tokens of this kind half of a state is left; infinite where all was kept."""
        return {layer: half_life(kept) for layer, kept in self.kept.items()}


def half_life(kept: float) -> float:
    """The number of tokens after which half is left when each keeps the share `kept`."""
    if kept >= 1.0:
        return math.inf
    return math.log(0.5) / math.log(kept) if kept > 0.0 else 0.0


def changes(before: list[mx.array], after: list[mx.array]) -> dict[int, float]:
    """The relative change of each layer's state; states without numbers are left out.

    Args:
        before, after: By layer index, `[B, H, r, r]`, or `[B, 0, 0, 0]` for a layer without a memory.
    """
    pairs = {layer: pair for layer, pair in enumerate(zip(before, after, strict=True)) if pair[0].size}
    distances = [mx.linalg.norm(b - a) / mx.maximum(_larger_norm(b, a), 1e-30) for b, a in pairs.values()]
    return dict(zip(pairs, mx.stack(distances).tolist(), strict=True))


def _larger_norm(before: mx.array, after: mx.array) -> mx.array:
    return mx.maximum(mx.linalg.norm(before), mx.linalg.norm(after))
