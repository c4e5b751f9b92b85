"""The two passes of an episode: the history is written into the memory, then texts are read with it (facts 3.3)."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.cache import PromptCache, make_prompt_cache, memory_alone
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import observing, read_only, write_mask
from mlx_deltamem.training.batch import Asked, Batch
from mlx_deltamem.training.logits import logits_at
from mlx_deltamem.training.segments.write_pass import write_states

# The states by layer of the model, `[B, H, r, r]` float32, or `[B, 0, 0, 0]` for a layer without a memory.
States = list[mx.array]


class GateMeans:
    """Computes the mean write gate β of each layer over the tokens of one or more passes, as an `Observer`.

    Args:
        masks: For each pass, `[B, T]` bool, False for tokens that do not count.
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
        """`[attached layers]` float32; a single 0 if no layer has run."""
        return mx.stack(list(self._sums.values())) if self._sums else mx.zeros(1)


def write(model: nn.Module, batch: Batch, watch: Observer | None = None, segment: int = 0) -> States:
    """Read the histories of a batch from an empty memory, and return the resulting states, with gradients.

    Args:
        model: An attached model.
        batch: The batch.
        watch: Called for each layer.
        segment: Checkpoint the gradient per layer and this many tokens; 0 keeps all activations.

    Returns:
        The states of the B episodes; `empty(model)` if no episode has a history.
    """
    states = None
    if batch.has_history:
        with observing(model, watch):
            for ids, lengths, written, episodes in batch.history:
                if episodes is None:
                    before = states
                else:
                    states = states or [mx.broadcast_to(each, (batch.size, *each.shape[1:])) for each in empty(model)]
                    before = [state[episodes] for state in states]
                after = write_states(model, ids, lengths, batch.shares, segment or None, written, before)
                states = after if states is None or episodes is None else _replaced(states, after, episodes)
    return empty(model) if states is None else states


def read(
    model: nn.Module, states: States, asked: Asked, watch: Observer | None = None, writes: bool = False
) -> mx.array:
    """Read each text with its state, and return the logits of the answers.

    Args:
        model: An attached model.
        states: The states of the N texts, or of one row that serves all of them.
        asked: The texts.
        watch: Called for each layer.
        writes: Whether the texts are also written, each into a copy of its state, as in a chat. Padding follows the
            text and has no effect.

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
    """Return the states of an empty memory, in one row that serves all texts."""
    return _cache(model)[-1].cache


def corrupted(states: States) -> States:
    """Return states of the same size that belong to no history.

    Heads and rows are rolled by one, and columns are reversed (facts 3.4).
    """
    return [mx.roll(mx.roll(state, 1, 1), 1, 2)[..., ::-1] if state.size else state for state in states]


def of_rows(states: States, rows: mx.array) -> States:
    """Return the states of N questions.

    Args:
        states: The states of B episodes. A single row serves all questions and is returned as it is.
        rows: `[N]` int32, the episode of each question.
    """
    return [state[rows] if state.size and state.shape[0] > 1 else state for state in states]


def _replaced(states: States, some: States, episodes: mx.array) -> States:
    """The states of all episodes, with those of some of them replaced."""
    replaced = []
    for state, new in zip(states, some, strict=True):
        # A copy, since assignment changes an array in place.
        whole = state + 0
        if whole.size:
            whole[episodes] = new
        replaced.append(whole)
    return replaced


def _cache(model: nn.Module) -> PromptCache:
    # Each text is read in one call, so that its keys and values need no cache. A cache would copy them, once more for
    # the gradient.
    return memory_alone(make_prompt_cache(model))
