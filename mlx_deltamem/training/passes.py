"""The two passes of an episode: the history is written into the memory, then texts are read with it (facts 3.3)."""

from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.attention import Observer
from mlx_deltamem.cache import make_prompt_cache
from mlx_deltamem.memory import WriteUnits
from mlx_deltamem.reads import Reads
from mlx_deltamem.training.answers import logits_at
from mlx_deltamem.training.batches import Asked, Batch
from mlx_deltamem.use import observing, read_only, using_spans

States = list[mx.array]  # by layer of the model, [B, H, r, r] float32


@dataclass(frozen=True)
class GivenUnits:
    """What a pass writes, as arrays that a compiled step is given anew each time.

    Attributes:
        shares: `[B, U, T]` float32, the share of each token in its unit.
    """

    shares: mx.array

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits:
        return WriteUnits(self.shares, self.shares.any(axis=-1))


class GateMeans:
    """The mean write gate of each layer, over the tokens that are no padding.

    Args:
        mask: `[B, T]` bool.
    """

    def __init__(self, mask: mx.array):
        self._shares = mask / mx.maximum(mask.sum(), 1)
        self._means: list[mx.array] = []

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        write = reads.gates.write
        self._means.append((write.mean(axis=(2, 3)) * self._shares).sum())

    @property
    def by_layer(self) -> mx.array:
        """`[attached layers]` float32; a single 0 where nothing ran."""
        return mx.stack(self._means) if self._means else mx.zeros(1)


def write(model: nn.Module, batch: Batch, watch: Observer) -> States:
    """Read histories from an empty memory and give the states they leave; their keys and values are dropped.

    Args:
        model: An attached model.
        batch: Whose histories.
        watch: Told of each layer's gates.
    """
    if not batch.history.shape[1]:
        return empty(model)
    cache = make_prompt_cache(model)
    cache[-1].lengths = batch.lengths
    spans = nullcontext() if batch.shares is None else using_spans(model, GivenUnits(batch.shares))
    with observing(model, watch), spans:
        model(batch.history, cache=cache)
    return cache[-1].cache


def read(model: nn.Module, states: States, asked: Asked, watch: Observer | None = None) -> mx.array:
    """The logits `[N, A, vocabulary]` of the answers, each text read with its state, which nothing changes.

    Args:
        model: An attached model.
        states: Of the N texts, or of one that serves all.
        asked: The texts.
        watch: Told of each layer's gates.
    """
    cache = make_prompt_cache(model)
    cache[-1].cache = states
    with read_only(model), observing(model, watch):
        return logits_at(model, asked.ids, cache, asked.positions)


def empty(model: nn.Module) -> States:
    """States in which nothing was written."""
    return make_prompt_cache(model)[-1].cache


def corrupted(states: States) -> States:
    """States of the same size that belong to no history: heads and rows rolled by one, columns reversed (facts 3.4)."""
    return [mx.roll(mx.roll(state, 1, axis=1), 1, axis=2)[..., ::-1] for state in states]


def of_rows(states: States, rows: mx.array) -> States:
    """The states of each of N questions."""
    return [state[rows] if state.shape[-1] and state.shape[0] > 1 else state for state in states]
