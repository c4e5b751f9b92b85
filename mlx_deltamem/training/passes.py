"""The two passes of an episode: the history is written into the memory, then texts are read with it (facts 3.3)."""

from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.attention import Observer
from mlx_deltamem.cache import PromptCache, make_prompt_cache, memory_alone
from mlx_deltamem.memory import WriteUnits
from mlx_deltamem.reads import Reads
from mlx_deltamem.training.answers import logits_at
from mlx_deltamem.training.batches import Asked, Batch
from mlx_deltamem.use import observing, read_only, using_spans

States = list[mx.array]  # by layer of the model, [B, H, r, r] float32, or [B, 0, 0, 0] where a layer has no memory


@dataclass(frozen=True)
class GivenUnits:
    """What a pass writes, as arrays that a compiled step is given anew each time.

    Attributes:
        shares: `[B, U, T]` float32, the share of each token in its unit.
    """

    shares: mx.array

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits:
        """As in `Spans`."""
        return WriteUnits(self.shares, self.shares.any(axis=-1))


class GateMeans:
    """An observer of one pass: the mean write gate β of each layer, over the tokens that are no padding.

    Args:
        mask: `[B, T]` bool, False for padding.
    """

    def __init__(self, mask: mx.array):
        self._shares = mask / mx.maximum(mask.sum(), 1)
        self._means: list[mx.array] = []

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        self._means.append((reads.gates.write.mean(axis=(2, 3)) * self._shares).sum())

    @property
    def by_layer(self) -> mx.array:
        """`[attached layers]` float32; a single 0 where nothing ran."""
        return mx.stack(self._means) if self._means else mx.zeros(1)


def write(model: nn.Module, batch: Batch, watch: Observer) -> States:
    """Read histories from an empty memory and give the states they leave, which gradients flow through.

    Args:
        model: An attached model.
        batch: Whose histories.
        watch: Told of each layer's gates.

    Returns:
        States of the B episodes; `empty(model)` where no episode has a history.
    """
    if not batch.history.shape[1]:
        return empty(model)
    cache = _cache(model)
    # A copy, since mlx-lm counts down the lengths that it is given in place.
    cache[-1].lengths = mx.array(batch.lengths)
    spans = nullcontext() if batch.shares is None else using_spans(model, GivenUnits(batch.shares))
    with observing(model, watch), spans:
        model(batch.history, cache=cache)
    return cache[-1].cache


def read(model: nn.Module, states: States, asked: Asked, watch: Observer | None = None) -> mx.array:
    """The logits of answers, each text read with its state, which nothing changes.

    Args:
        model: An attached model.
        states: Of the N texts, or of one that serves all.
        asked: The texts.
        watch: Told of each layer's gates.

    Returns:
        `[N, A, vocabulary]` in the model's dtype.
    """
    cache = _cache(model)
    cache[-1].cache = states
    with read_only(model), observing(model, watch):
        return logits_at(model, asked.ids, cache, asked.positions)


def empty(model: nn.Module) -> States:
    """States in which nothing was written, of one row that serves all."""
    return _cache(model)[-1].cache


def corrupted(states: States) -> States:
    """States of the same size that belong to no history: heads and rows rolled by one, columns reversed (facts 3.4)."""
    return [mx.roll(state, (1, 1), axis=(1, 2))[..., ::-1] if state.size else state for state in states]


def of_rows(states: States, rows: mx.array) -> States:
    """The states of N questions.

    Args:
        states: Of B episodes.
        rows: `[N]` int32, the episode of each question; it has no effect where there is one row, which serves all.
    """
    return [state[rows] if state.size and state.shape[0] > 1 else state for state in states]


def _cache(model: nn.Module) -> PromptCache:
    # Each pass is one call, and copying keys and values into a cache costs time, once more for the gradient.
    return memory_alone(make_prompt_cache(model))
