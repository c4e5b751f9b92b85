"""Measure how much of the memory a turn kept, and how far it moved the memory."""

import math
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlx_deltamem.core.key_shift import square
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.sessions.turns.restore import States


@dataclass(frozen=True)
class Drift:
    """The effect of one turn on the memory, by layer index.

    Attributes:
        kept: The mean of the keep gate (0 to 1) over the tokens that were written as the messages were read, the
            template's tokens among them. The tokens of the reply run one by one and are not measured. 1.0 for a turn
            that wrote nothing.
        changed: The distance between the states before and after the whole turn, divided by the larger of their norms.
            0 means no change. Above 1, the new state points in another direction.
    """

    kept: dict[int, float]
    changed: dict[int, float]

    @property
    def half_life(self) -> dict[int, float]:
        """By layer, the number of such tokens after which half of a state is left; infinite if all is kept."""
        return {layer: half_life(kept) for layer, kept in self.kept.items()}


def half_life(kept: float) -> float:
    """The number of tokens after which half of a state is left, if each token keeps the share `kept` of it.

    It is NaN if `kept` is.
    """
    if kept >= 1.0:
        return math.inf
    return 0.0 if kept <= 0.0 else math.log(0.5) / math.log(kept)


def changes(before: States, after: States) -> dict[int, float]:
    """The relative change of the states, by layer index.

    Only the square part `[B, H, r, r]` is compared. The extra row of a key shift holds the last token's memory query,
    which is not memory content.

    Args:
        before, after: By layer index, `[B, H, r, r]` or `[B, H, r + 1, r]` float32; `[B, 0, 0, 0]` for a layer without
            a memory, which is left out.
    """
    pairs = {layer: pair for layer, pair in enumerate(zip(before, after, strict=True)) if pair[0].size}
    return _numbers({layer: _relative_distance(square(b), square(a)) for layer, (b, a) in pairs.items()})


def joined_drift(*parts: tuple[Drift | None, int]) -> Drift:
    """The drift of a turn that was read in parts, each with the number of tokens it wrote. `changed` is empty."""
    known = [(drift.kept, count) for drift, count in parts if drift is not None and count]
    if not known:
        return Drift(next((dict(drift.kept) for drift, _ in parts if drift is not None), {}), {})
    written = sum(count for _, count in known)
    layers = sorted(set.intersection(*(set(kept) for kept, _ in known)))
    return Drift({layer: sum(kept[layer] * count for kept, count in known) / written for layer in layers}, {})


class KeepGateMeans:
    """The mean of the keep gate over the tokens that are written, by layer. An `Observer` of forward passes."""

    def __init__(self) -> None:
        # By layer, the sum over the tokens and their number, `[B]`.
        self._sums: dict[int, tuple[mx.array, mx.array]] = {}

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if reads.written:
            total, count = reads.sum_over_written(reads.gates.keep)
            if layer in self._sums:
                earlier, earlier_count = self._sums[layer]
                total, count = earlier + total, earlier_count + count
            self._sums[layer] = total, count

    def evaluate(self) -> None:
        """Evaluate the sums, so that the activations that they are computed from can be freed."""
        mx.eval(list(self._sums.values()))

    def means(self, row: int = 0) -> dict[int, float]:
        """The means of a row by layer index; empty if nothing was written."""
        sums = {layer: total[row] for layer, (total, _) in self._sums.items()}
        counts = _numbers({layer: count[row] for layer, (_, count) in self._sums.items()})
        return _numbers({layer: sums[layer] / count for layer, count in counts.items() if count})


def _relative_distance(before: mx.array, after: mx.array) -> mx.array:
    larger = mx.maximum(mx.linalg.norm(before), mx.linalg.norm(after))
    return mx.linalg.norm(after - before) / mx.maximum(larger, 1e-30)


def _numbers(scalars: dict[int, mx.array]) -> dict[int, float]:
    """Scalar arrays as numbers. They are evaluated together."""
    mx.eval(scalars)
    return {layer: cast(float, scalar.item()) for layer, scalar in scalars.items()}
