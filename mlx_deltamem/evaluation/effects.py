"""What the memory does while texts are read: how strongly it is written, and how far it turns the layers' outputs."""

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.reads import Reads
from mlx_deltamem.sessions.turn import States


class WriteGates:
    """An `Observer` of texts that are written: the mean of β, the write gate, over layers and tokens."""

    def __init__(self):
        self._sum, self._count = mx.zeros(()), mx.zeros(())

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if reads.written:
            found, count = reads.sum_over_written(reads.gates.write)
            self._sum, self._count = self._sum + found, self._count + count

    def evaluate(self, *_: int) -> None:
        """Let go of the activations that the sum is made of; also a `Progress`."""
        mx.eval(self._sum, self._count)

    @property
    def count(self) -> int:
        """How many tokens and layers were written."""
        return int(self._count.item())

    @property
    def sum(self) -> float:
        """Over tokens and layers; `count` is how many."""
        return self._sum.item()


class Corrections:
    """An `Observer` of prompts, side by side: the sum of ‖Δo‖ / ‖o‖ over tokens and layers.

    Padding reads nothing and so adds nothing. Single tokens are replies as they are generated, which nothing may slow
    down; they are not looked at.
    """

    def __init__(self):
        self._sum = mx.zeros(())

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if output.shape[1] > 1:
            # Of zeros, so that nothing is lost to rounding beside a large output.
            delta = reads.correct("o_proj", mx.zeros_like(output))
            self._sum = self._sum + (_row_norms(delta) / _row_norms(output)).sum()

    def evaluate(self) -> None:
        """Let go of the activations that the sum is made of."""
        mx.eval(self._sum)

    @property
    def sum(self) -> float:
        return self._sum.item()


def corrects_output(model: nn.Module) -> bool:
    """Whether the adapter of an attached model corrects the attention output."""
    return "o" in model.attachment.config.delta_heads


def mean_norm(states: States) -> float:
    """The mean Frobenius norm of the states of all layers that have one."""
    norms = [mx.linalg.norm(state) for state in states if state.shape[-1]]
    return mx.stack(norms).mean().item() if norms else 0.0


def _row_norms(x: mx.array) -> mx.array:
    return mx.linalg.norm(x.astype(mx.float32), axis=-1)
