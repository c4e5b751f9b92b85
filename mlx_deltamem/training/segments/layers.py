"""Runs the layers of an attached model with gradient checkpointing, by layer and segment of a history.

Of each layer, only its input, its keys and values, and its state before each segment are kept for the gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.access import Access
from mlx_deltamem.core.attention import FORWARD_PASS, ForwardPass
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.training.segments.cache import Arrays, Chunks, SegmentArrays, SegmentCache, SegmentKeys
from mlx_deltamem.training.segments.recompute import Recomputed, leaves, put_together, replace_leaf, take_apart

# Called with a layer's index and, of one segment, the arrays of its `Reads` and its output before the correction.
Note = Callable[[int, list[mx.array]], None]


class CheckpointedLayers:
    """Runs the layers of one pass over a history, as a `RunLayer`.

    Args:
        model: The attached model. Its cache is from `make_write_cache`.
        note: Called for each layer and segment if the pass is observed; else None.

    Attributes:
        tokens: B and T of the present segment.
    """

    def __init__(self, model: nn.Module, note: Note | None):
        self.tokens = (0, 0)
        self._memories = {
            id(model.layers[index]): (index, attention.delta_mem)
            for index, attention in attached_attention(model).items()
        }
        self._note = note
        self._recomputed = Recomputed()
        # The parameters of each layer, as its call for the segment before has passed them on.
        self._parameters: dict[int, dict] = {}

    def __call__(self, layer: nn.Module, own_call: Callable[..., object], args: tuple, kwargs: dict) -> object:
        cache = _cache_among((args, kwargs))
        memory = self._memory_of(layer)
        before = None if memory is None else memory.before()
        own, own_outline = take_apart(((args, kwargs), cache.own, before))
        parameters = self._parameters.get(id(layer), layer.trainable_parameters())
        shared, shared_outline = take_apart((parameters, cache.shared))
        # A copy, since the cache holds later segments when the call runs again.
        call = _LayerCall(layer, own_call, cache, cache.copy([], []), memory)
        outlines: list[_LeftByCall] = []

        def function(arrays: list[mx.array]) -> list[mx.array]:
            call_arguments, cache_own, before = put_together(arrays[: len(own)], own_outline)
            parameters, cache_shared = put_together(arrays[len(own) :], shared_outline)
            results, outline = take_apart(call.run(call_arguments, cache_own, before, parameters, cache_shared))
            outlines.append(outline)
            return results

        results, shared = self._recomputed.call(function, own, shared)
        output, left, after = put_together(results, outlines[0])
        self._parameters[id(layer)], chunks = put_together(shared, shared_outline)
        cache.take(chunks, left)
        if memory is not None and after is not None:
            memory.keep(*after)
        return output

    def _memory_of(self, layer: nn.Module) -> "_MemoryCall | None":
        forward = FORWARD_PASS.get()
        if id(layer) not in self._memories or forward is None:
            return None
        index, memory = self._memories[id(layer)]
        return _MemoryCall(index, memory, forward, forward.access(*self.tokens), self._note)


# The arguments of `_MemoryCall.keep`.
_LeftByMemory = tuple[mx.array | None, mx.array | None, list[mx.array]]
# A layer's output, the arrays that its call left in its cache, and the arguments of `_MemoryCall.keep`.
_LeftByCall = tuple[object, Arrays, _LeftByMemory | None]


@dataclass(frozen=True)
class _MemoryCall:
    """The memory of one layer during one segment.

    Attributes:
        index: The layer's index.
        memory: The layer's memory.
        forward: The pass of the whole model over the segment.
        access: What the tokens of the segment may do.
        note: As in `CheckpointedLayers`.
    """

    index: int
    memory: DeltaMemory
    forward: ForwardPass
    access: Access
    note: Note | None

    def before(self) -> tuple[mx.array, mx.array | None]:
        """The state before the segment, and the sums over the tokens of units that are not complete."""
        return self.forward.states[self.index], _carried(self.access).pop(id(self.memory), None)

    def run(self, call: Callable[[], object], state: mx.array, sums: mx.array | None) -> tuple[object, "_LeftByMemory"]:
        """Call the layer within a forward pass of its own; return its output and the arguments of `keep`."""
        access = self.access
        notes: list[mx.array] = []
        carried = {} if sums is None else {id(self.memory): sums}
        if access.units is not None:
            access = replace(access, units=replace(access.units, carried=carried))

        def observe(_: int, reads: Reads, output: mx.array) -> None:
            notes.extend([*reads.arrays(), output])

        # The pass is not plain: with mlx-lm's gradient checkpointing a plain pass would begin from an empty memory.
        states = [state] * (self.index + 1)
        forward = ForwardPass(states, lambda *_: access, None if self.note is None else observe, plain=False)
        token = FORWARD_PASS.set(forward)
        try:
            output = call()
        finally:
            FORWARD_PASS.reset(token)
        forward.finish()
        after = forward.states[self.index] if forward.layers_run else None
        return output, (after, carried.get(id(self.memory)), notes)

    def keep(self, state: mx.array | None, sums: mx.array | None, notes: list[mx.array]) -> None:
        """Pass the results of the segment on. Without a state, the model's pass reports that the layer did not run."""
        if state is not None:
            self.forward.keep_state(self.index, state)
        if sums is not None:
            _carried(self.access)[id(self.memory)] = sums
        if self.note is not None:
            self.note(self.index, notes)


def _carried(access: Access) -> dict[int, mx.array]:
    """The sums of units over the segments so far, by the identity of the memory; empty if there are no units."""
    return {} if access.units is None or access.units.carried is None else access.units.carried


@dataclass(frozen=True)
class _LayerCall:
    """A call of a layer that gives the same result each time it runs.

    Attributes:
        layer: The layer.
        own_call: The layer's own call, bound to it.
        cache: The cache among the arguments of the call.
        cache_before: A copy of the cache, without its arrays.
        memory: The layer's memory during the segment; None for a layer without a memory.
    """

    layer: nn.Module
    own_call: Callable[..., object]
    cache: SegmentCache
    cache_before: SegmentCache
    memory: _MemoryCall | None

    def run(
        self,
        arguments: tuple[tuple, dict],
        cache_own: Arrays,
        before: tuple[mx.array, mx.array | None] | None,
        parameters: dict,
        cache_shared: Chunks,
    ) -> _LeftByCall:
        """Call the layer. All arrays come from the arguments of this method."""
        cache = self.cache_before.copy(cache_shared, cache_own)
        args, kwargs = replace_leaf(arguments, self.cache, cache)

        def call() -> object:
            return self.own_call(*args, **kwargs)

        with _parameters(self.layer, parameters):
            if self.memory is None or before is None:
                return call(), cache.left, None
            output, after = self.memory.run(call, *before)
            return output, cache.left, after


@contextmanager
def _parameters(layer: nn.Module, parameters: dict) -> Iterator[None]:
    """Within it, the layer has other parameters."""
    before = layer.trainable_parameters()
    layer.update(parameters)
    try:
        yield
    finally:
        layer.update(before)


def _cache_among(arguments: object) -> SegmentCache:
    """The cache among the arguments of a layer; an empty one if there is none."""
    found = (leaf for leaf in leaves(arguments) if isinstance(leaf, SegmentKeys | SegmentArrays))
    return next(found, SegmentArrays(0))
