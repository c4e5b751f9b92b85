"""The layers of an attached model that reads a history in segments, with gradient checkpointing by layer and segment.

What is kept of a layer for the gradient is its input, its keys and values, and its state before each segment.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_deltamem.core.attention import FORWARD_PASS, ForwardPass
from mlx_deltamem.core.access import Access
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.training.segments.cache import SegmentArrays, SegmentCache, SegmentKeys
from mlx_deltamem.training.segments.recompute import Recomputed
from mlx_deltamem.training.segments.trees import Tree, put_together, replace_leaf, take_apart

# Given a layer's index and, of one segment, what `Reads.arrays` gives and the layer's output before the correction.
Note = Callable[[int, list[mx.array]], None]


class CheckpointedLayers:
    """Runs the layers of one pass over a history, as a `RunLayer`.

    Args:
        model: The attached model; its cache is of `make_write_cache`.
        note: Told what someone who observes the pass will want to know; None: nobody does.

    Attributes:
        tokens: B and T of the segment that is read now.
    """

    def __init__(self, model: nn.Module, note: Note | None):
        self.tokens = (0, 0)
        self._memories = {
            id(model.layers[index]): (index, attention.delta_mem)
            for index, attention in attached_attention(model).items()
        }
        self._note = note
        self._recomputed = Recomputed()
        # By layer, as the segment before has handed them on.
        self._parameters: dict[int, Tree] = {}

    def __call__(self, layer: nn.Module, own_call: Callable[..., Tree], args: tuple, kwargs: dict) -> Tree:
        cache = _cache_among((args, kwargs))
        memory = self._memory_of(layer)
        before = None if memory is None else memory.before()
        own, own_outline = take_apart(((args, kwargs), cache.own, before))
        parameters = self._parameters.get(id(layer), layer.trainable_parameters())
        shared, shared_outline = take_apart((parameters, cache.shared))
        # The cache will have gone on to later segments when this runs again.
        call = _LayerCall(layer, own_call, cache, cache.copy((), ()), memory)
        outlines = []

        def function(arrays: list[mx.array]) -> list[mx.array]:
            own_tree = put_together(arrays[: len(own)], own_outline)
            results, outline = take_apart(call.run(*own_tree, *put_together(arrays[len(own) :], shared_outline)))
            outlines.append(outline)
            return results

        results, shared = self._recomputed.call(function, own, shared)
        output, left, after = put_together(results, outlines[0])
        self._parameters[id(layer)], chunks = put_together(shared, shared_outline)
        cache.take(chunks, left)
        if memory is not None:
            memory.keep(*after)
        return output

    def _memory_of(self, layer: nn.Module) -> "_MemoryCall | None":
        if id(layer) not in self._memories:
            return None
        index, memory = self._memories[id(layer)]
        forward = FORWARD_PASS.get()
        return _MemoryCall(index, memory, forward, forward.access(*self.tokens), self._note)


@dataclass(frozen=True)
class _MemoryCall:
    """What a layer's memory has to do with one segment; `forward` is the whole model's pass over it."""

    index: int
    memory: DeltaMemory
    forward: ForwardPass
    access: Access
    note: Note | None

    def before(self) -> tuple[mx.array, mx.array | None]:
        """The state, and the sums over the tokens of units that are still to be written."""
        units = self.access.units
        return self.forward.states[self.index], None if units is None else units.carried.pop(id(self.memory), None)

    def run(self, call: Callable[[], Tree], state: mx.array, sums: mx.array | None) -> tuple[Tree, tuple]:
        """Call the layer in a pass of its own; also returns what `keep` takes."""
        access, carried, notes = self.access, {} if sums is None else {id(self.memory): sums}, []
        if access.units is not None:
            access = replace(access, units=replace(access.units, carried=carried))
        observe = None if self.note is None else lambda _, reads, output: notes.extend([*reads.arrays(), output])
        # Not a plain pass: where mlx-lm's gradient checkpointing is on, it would begin from an empty memory here.
        forward = ForwardPass([state] * (self.index + 1), lambda *_: access, observe, plain=False)
        token = FORWARD_PASS.set(forward)
        try:
            output = call()
        finally:
            FORWARD_PASS.reset(token)
        state = forward.states[self.index] if forward.layers_run else None
        return output, (state, carried.get(id(self.memory)), notes)

    def keep(self, state: mx.array | None, sums: mx.array | None, notes: list[mx.array]) -> None:
        """Go on with what the segment left; the model's pass misses a state that is None."""
        if state is not None:
            self.forward.has_run(self.index, state)
        if sums is not None:
            self.access.units.carried[id(self.memory)] = sums
        if self.note is not None:
            self.note(self.index, notes)


@dataclass(frozen=True)
class _LayerCall:
    """A call of a layer that is the same whenever it runs."""

    layer: nn.Module
    own_call: Callable[..., Tree]
    cache: SegmentCache
    cache_before: SegmentCache
    memory: _MemoryCall | None

    def run(self, arguments: Tree, cache_own: Tree, before: tuple | None, parameters: Tree, cache_shared: Tree) -> Tree:
        """The layer's output, what it left in its cache, and what its memory keeps; all arrays come from arguments."""
        cache = self.cache_before.copy(cache_shared, cache_own)
        args, kwargs = replace_leaf(arguments, self.cache, cache)

        def call() -> Tree:
            return self.own_call(*args, **kwargs)

        with _parameters(self.layer, parameters):
            output, after = (call(), None) if self.memory is None else self.memory.run(call, *before)
        return output, cache.left, after


@contextmanager
def _parameters(layer: nn.Module, parameters: Tree) -> Iterator[None]:
    """Within it, the layer has other parameters."""
    before = layer.trainable_parameters()
    layer.update(parameters)
    try:
        yield
    finally:
        layer.update(before)


def _cache_among(arguments: Tree) -> SegmentCache:
    """The cache that a layer is called with; an empty one where it has none."""
    leaves = (leaf for _, leaf in tree_flatten(arguments))
    return next((leaf for leaf in leaves if isinstance(leaf, SegmentKeys | SegmentArrays)), SegmentArrays(0))
