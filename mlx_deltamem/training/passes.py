"""The two passes of an episode: the history is written into the memory, then texts are read with it (facts 3.3)."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.cache import PromptCache, make_prompt_cache, memory_alone
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import observing, read_only, write_mask
from mlx_deltamem.training.batches import Asked, Batch
from mlx_deltamem.training.logits import logits_at
from mlx_deltamem.training.segments.write_pass import write_states

States = list[mx.array]  # by layer of the model, [B, H, r, r] float32, or [B, 0, 0, 0] where a layer has no memory


class GateMeans:
    """An observer of one pass, or of several over a history: the mean write gate β of each layer, over the tokens that
    are no padding.

    Args:
        masks: Of each pass, `[B, T]` bool, False for padding.
    """

    def __init__(self, *masks: mx.array):
        tokens = mx.maximum(sum(mask.sum() for mask in masks), 1)
        self._shares = [mask.astype(mx.float32) / tokens for mask in masks]
        self._passes: Counter[int] = Counter()
        self._sums: dict[int, mx.array] = {}

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        shares = self._shares[self._passes[layer]]
        found = (reads.gates.write.mean(axis=(2, 3)) * shares).sum()
        self._sums[layer] = self._sums[layer] + found if layer in self._sums else found
        self._passes[layer] += 1

    @property
    def by_layer(self) -> mx.array:
        """`[attached layers]` float32; a single 0 where nothing ran."""
        return mx.stack(list(self._sums.values())) if self._sums else mx.zeros(1)


def write(model: nn.Module, batch: Batch, watch: Observer, segment: int = 0) -> States:
    """Read histories from an empty memory and give the states they leave, which gradients flow through.

    Args:
        model: An attached model.
        batch: Whose histories.
        watch: Told of each layer's gates.
        segment: Keep of each layer and so many tokens only what goes into them for the gradient; 0 keeps everything.

    Returns:
        States of the B episodes; `empty(model)` where no episode has a history.
    """
    if not batch.told:
        return empty(model)
    states = None
    with observing(model, watch):
        for ids, lengths, written in batch.history:
            states = write_states(model, ids, lengths, batch.shares, segment or None, written, states)
    return states


def read(
    model: nn.Module, states: States, asked: Asked, watch: Observer | None = None, writes: bool = False
) -> mx.array:
    """The logits of answers, each text read with its state.

    Args:
        model: An attached model.
        states: Of the N texts, or of one that serves all.
        asked: The texts.
        watch: Told of each layer's gates.
        writes: Whether each text, or what is to be of it, is also written into a copy of its state as it is read, as in
            a chat. What fills it up comes after it, and so cannot matter.

    Returns:
        `[N, A, vocabulary]` in the model's dtype.
    """
    cache = _cache(model)
    cache[-1].cache = list(states)
    with _writing(model, asked.written) if writes else read_only(model), observing(model, watch):
        return logits_at(model, asked.ids, cache, asked.positions)


def _writing(model: nn.Module, written: mx.array | None) -> AbstractContextManager[None]:
    return nullcontext() if written is None else write_mask(model, written)


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
