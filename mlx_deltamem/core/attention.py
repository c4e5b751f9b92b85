"""An attention layer of mlx-lm with a memory: how the memory gets into the call of the layer.

A call of an attached model is a `ForwardPass`. Within it, each attached layer (`DeltaAttention`) reads and writes its
state before the backbone's own call, and adds the corrections to the projections during and after that call.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.access import Access, both
from mlx_deltamem.core.late import LateWrite, Together, late_states
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.past import LayerPass
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.shapes import shards

Observer = Callable[[int, Reads, mx.array], None]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj")


class ForwardPass:
    """One call of an attached model. It holds the states of the layers: before they run, then after.

    Args:
        states: By layer index, `[B, H, r, r]` float32; states of a batch of 1 serve a batch of any size.
        access_for: Returns what the tokens `[B, T]` of this pass may do; called once, with B and T.
        observe: Called for each layer with its index, its reads and its output before the correction.
        plain: Whether the call has no cache and no context (`read_only`, ...) around it.
        is_off: Whether the layers run without their memory, within `memory_off`.
        together: What the last pass left for this one (`late_states`); None: nothing.
    """

    def __init__(
        self,
        states: Sequence[mx.array],
        access_for: Callable[[int, int], Access],
        observe: Observer | None = None,
        plain: bool = True,
        is_off: bool = False,
        together: Together | None = None,
    ):
        self.plain = plain
        self.is_off = is_off
        self.observe = observe
        self.together = together
        self.states = list(states)
        self.length = 0
        self.layers_run: set[int] = set()
        self.batch = 0
        # By layer, the passes that wrote; the whole is None if a layer wrote and its pass is not known.
        self.layer_passes: dict[int, LayerPass] | None = {}
        self._access_for = access_for
        self._access: Access | None = None
        self._late: dict[int, LateWrite] = {}

    def run(self, layer: int, layer_memory: DeltaMemory, x: mx.array) -> Reads:
        """Run the inputs `x` `[B, T, hidden]` of a layer through its memory and keep the new state.

        The new states of some passes are only there after `finish`.

        Raises:
            ValueError: The layer has run in this pass before, or the state has another batch size than the tokens.
        """
        batch, length, _ = x.shape
        access, state = self._access or self.access(batch, length), self.states[layer]
        rows = state.shape[0]
        if rows != batch:
            if rows != 1:
                raise ValueError(
                    f"the memory in the cache has {rows} rows and the tokens have {batch}; expected the same number, "
                    "or a memory of one row"
                )
            state = mx.broadcast_to(state, (batch, *state.shape[1:]))
        reads, after = layer_memory.read_before_write(x, state, access)
        if isinstance(after, LateWrite):
            self._note_run(layer)
            self._late[layer] = after
        else:
            self.keep_state(layer, after)
        if reads.written and self.layer_passes is not None:
            if reads.layer_pass is None:
                self.layer_passes = None
            else:
                self.layer_passes[layer] = reads.layer_pass
        return reads

    def finish(self) -> bool:
        """Write the tokens that were left to the end of the pass; returns whether there were any."""
        if not self._late:
            return False
        access = self._access or Access()
        late, self._late = self._late, {}
        states, self.together = late_states(late, both(access.mask, access.written), self.together)
        for layer, state in states.items():
            self.states[layer] = state
        return True

    def skip(self, layer: int, x: mx.array) -> None:
        """Note that a layer with the inputs `x` runs without its memory."""
        self.batch, self.length = x.shape[:2]
        self.keep_state(layer, self.states[layer])

    def access(self, batch: int, length: int) -> Access:
        """The access of the tokens `[batch, length]` of this pass; the first layer that asks decides it."""
        if self._access is None:
            self._access = self._access_for(batch, length)
            self.batch, self.length = batch, length
        return self._access

    def keep_state(self, layer: int, state: mx.array) -> None:
        """Keep the new state of a layer.

        Raises:
            ValueError: The layer has run in this pass before.
        """
        self._note_run(layer)
        self.states[layer] = state

    def _note_run(self, layer: int) -> None:
        if layer in self.layers_run:
            raise ValueError(
                f"layer {layer} runs twice in one pass of this model; a memory needs layers that run once, so use an "
                "adapter whose target_layers leave it out"
            )
        self.layers_run.add(layer)


FORWARD_PASS: ContextVar[ForwardPass | None] = ContextVar("FORWARD_PASS", default=None)


@dataclass(slots=True, eq=False)
class _Steering:
    """The running call of an attached layer.

    Attributes:
        attention: The layer.
        reads: What its tokens read.
        applied: The projections that have been corrected so far, by name.
    """

    attention: nn.Module
    reads: Reads
    applied: set[str]


_STEERING: ContextVar[_Steering | None] = ContextVar("_STEERING", default=None)


class DeltaAttention(nn.Module):
    """The part of the class of an attached attention layer that does not come from mlx-lm.

    The class of the layer becomes a subclass of (DeltaAttention, Original). The projections to correct become
    properties of that class. During a call of the layer, they return the backbone's projection followed by the
    correction, and at any other time the projection itself. So the parameters of the module, and the results of walking
    over them, stay as they were.

    Attributes:
        delta_mem: The memory of the layer.
        delta_layer: The index of the layer.
        delta_plain: `ForwardPass.plain` of the last pass in training mode; missing before the first one.
        input_name: The name of the first argument of the original call.
        frozen_class: The original class.
    """

    delta_mem: DeltaMemory
    delta_layer: int
    delta_plain: bool
    input_name: ClassVar[str]
    frozen_class: ClassVar[type[nn.Module]]

    # The arguments are those of the original call, which differ from model to model.
    def __call__(self, *args: Any, **kwargs: Any) -> mx.array | tuple[mx.array, ...]:
        # Not `self.delta_mem`, which is slower.
        layer_memory: DeltaMemory = self["delta_mem"]
        x: mx.array = args[0] if args else kwargs[self.input_name]
        forward = self._forward_pass(args, kwargs)
        if forward.is_off:
            forward.skip(self.delta_layer, x)
            found: mx.array | tuple[mx.array, ...] = super().__call__(*args, **kwargs)
            return found
        steering = _Steering(self, forward.run(self.delta_layer, layer_memory, x), set())
        token = _STEERING.set(steering)
        try:
            output: mx.array | tuple[mx.array, ...] = super().__call__(*args, **kwargs)
        finally:
            _STEERING.reset(token)
        # `__call__` itself corrects o_proj, below.
        if missed := layer_memory.corrected_inside - steering.applied:
            raise ValueError(
                f"layer {self.delta_layer} ({self.frozen_class.__name__}) never called {', '.join(sorted(missed))}, so "
                "the correction was not applied; use an adapter whose delta_heads or target_layers leave it out"
            )
        if forward.observe is not None:
            forward.observe(self.delta_layer, steering.reads, output[0] if isinstance(output, tuple) else output)
        if "o_proj" not in layer_memory.corrected:
            return output
        if isinstance(output, tuple):
            return steering.reads.correct("o_proj", output[0]), *output[1:]
        return steering.reads.correct("o_proj", output)

    def _forward_pass(self, args: Sequence[object], kwargs: Mapping[str, object]) -> ForwardPass:
        """The pass that this call belongs to; a call from outside the model gets a new pass with an empty memory.

        Raises:
            ValueError: The call comes from outside the model and cannot have an empty memory.
        """
        forward = FORWARD_PASS.get()
        if forward is not None:
            if self.training:
                self.delta_plain = forward.plain
            return forward
        if self.training and not getattr(self, "delta_plain", True):
            raise ValueError(
                "gradient checkpointing runs an attached layer again, and this layer cannot know the memory, the spans "
                "or the read_only of the pass; turn gradient checkpointing off, or call the model without a cache and "
                "outside of read_only, write_spans and write_mask"
            )
        if any(hasattr(value, "update_and_fetch") for value in (*args, *kwargs.values())):
            raise ValueError(
                "an attached layer was called with a cache and not by its model, so it has no access to its memory; "
                "call the model itself, or detach(model) first"
            )
        states = [mx.zeros((1, *self.delta_mem.state_shape))] * (self.delta_layer + 1)
        return ForwardPass(states, lambda *_: Access())


def _projection(name: str) -> property:
    """A property that returns a projection of the backbone, with its correction during a call of the layer."""

    def get(self: nn.Module) -> nn.Module | Callable[[mx.array], mx.array]:
        projection: nn.Module = self[name]
        steering = _STEERING.get()
        if steering is None or steering.attention is not self:
            return projection
        steering.applied.add(name)
        rows = _held_rows(projection)
        return lambda x: steering.reads.correct(name, projection(x), rows)

    return property(get)


def delta_attention_class(attention: nn.Module, corrected: frozenset[str]) -> type[nn.Module]:
    """The class for an attention layer with a memory that corrects the projections `corrected`."""
    return _delta_attention_class(type(attention), tuple(name for name in _PROJECTIONS if name in corrected))


@functools.cache
def _delta_attention_class(frozen_class: type[nn.Module], projections: tuple[str, ...]) -> type[nn.Module]:
    members: dict[str, object] = {name: _projection(name) for name in projections}
    members["input_name"] = list(inspect.signature(frozen_class.__call__).parameters)[1]
    members["frozen_class"] = frozen_class
    return type(f"DeltaMem{frozen_class.__name__}", (DeltaAttention, frozen_class), members)


def _held_rows(linear: nn.Module) -> slice | None:
    """For a linear layer that is split over several processes, the part of its output in this process; else None."""
    if shards(linear) == 1:
        return None
    rank, held = linear.group.rank(), linear.weight.shape[0]
    return slice(rank * held, (rank + 1) * held)
