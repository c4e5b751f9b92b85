"""An attention layer of mlx-lm with a memory: how the memory gets into its call."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.access import Access
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.shapes import shards

Observer = Callable[[int, Reads, mx.array], None]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj")


class ForwardPass:
    """One call of an attached model: the states of its layers before and, once they ran, after it.

    Args:
        states: By layer index, `[B, H, r, r]` float32; a batch of 1 serves a pass over any batch.
        access_for: Called once, with B and T: what the tokens of this pass may do.
        observe: Told the index of each layer, what its tokens read, and its output before the correction.
        plain: Whether this is what a call of the model without a cache or anything else around it does.
    """

    def __init__(
        self,
        states: list[mx.array],
        access_for: Callable[[int, int], Access],
        observe: Observer | None = None,
        plain: bool = True,
    ):
        self.plain = plain
        self.observe = observe
        self.states = list(states)
        self.length = 0
        self.layers_run: set[int] = set()
        self._access_for = access_for
        self._access: Access | None = None

    def run(self, layer: int, layer_memory: DeltaMemory, x: mx.array) -> Reads:
        """Run a layer's tokens through its memory and keep the new state.

        Raises:
            ValueError: The layer has run in this pass already, or the state is of another batch.
        """
        access, state = self.access(*x.shape[:2]), self.states[layer]
        if state.shape[0] != x.shape[0]:
            if state.shape[0] != 1:
                raise ValueError(f"the memory in the cache is of {state.shape[0]} rows, the tokens are of {x.shape[0]}")
            state = mx.broadcast_to(state, (x.shape[0], *state.shape[1:]))
        reads, state = layer_memory.read_and_write(x, state, access)
        self.has_run(layer, state)
        return reads

    def access(self, batch: int, length: int) -> Access:
        """What the tokens `[batch, length]` of this pass may do."""
        if self._access is None:
            self._access = self._access_for(batch, length)
            self.length = length
        return self._access

    def has_run(self, layer: int, state: mx.array) -> None:
        """Keep the state that a layer left.

        Raises:
            ValueError: The layer has run in this pass already.
        """
        if layer in self.layers_run:
            raise ValueError(f"layer {layer} runs twice in one pass of this model, which a memory cannot follow")
        self.layers_run.add(layer)
        self.states[layer] = state


FORWARD_PASS: ContextVar[ForwardPass | None] = ContextVar("FORWARD_PASS", default=None)


@dataclass
class _Steering:
    """The call of an attention layer that is under way: which layer, and what its tokens read."""

    attention: nn.Module
    reads: Reads
    applied: set[str]


_STEERING: ContextVar[_Steering | None] = ContextVar("_STEERING", default=None)


class DeltaAttention:
    """The part of an attached attention layer's class that is not mlx-lm's.

    The layer's class becomes a subclass (DeltaAttention, Original). The projections that are corrected are class
    properties: within a call of the layer they give the backbone's projection followed by the correction, at any other
    time the projection itself. So the module's parameters, and whatever walks over them, stay as they were.
    """

    def __call__(self, *args: object, **kwargs: object) -> mx.array | tuple:
        layer_memory: DeltaMemory = self.delta_mem
        x = args[0] if args else kwargs[self.input_name]
        forward = self._forward_pass(args, kwargs)
        steering = _Steering(self, forward.run(self.delta_layer, layer_memory, x), set())
        token = _STEERING.set(steering)
        try:
            output = super().__call__(*args, **kwargs)
        finally:
            _STEERING.reset(token)
        self._check_applied(steering)
        if forward.observe is not None:
            forward.observe(self.delta_layer, steering.reads, output[0] if isinstance(output, tuple) else output)
        if "o_proj" not in layer_memory.corrected:
            return output
        if isinstance(output, tuple):
            return steering.reads.correct("o_proj", output[0]), *output[1:]
        return steering.reads.correct("o_proj", output)

    def _forward_pass(self, args: tuple, kwargs: dict) -> ForwardPass:
        """The pass this call belongs to; for a call from outside the model, one that starts from an empty memory."""
        forward = FORWARD_PASS.get()
        if forward is not None:
            if self.training:
                self.delta_plain = forward.plain
            return forward
        if self.training and not getattr(self, "delta_plain", True):
            raise ValueError(
                "an attached layer is run again for its gradient (gradient checkpointing) after a pass that began from "
                "a memory, read it only or had spans, which are not known here; turn gradient checkpointing off"
            )
        if any(hasattr(value, "update_and_fetch") for value in (*args, *kwargs.values())):
            raise ValueError(
                "an attached layer was called with a cache and without its model, so its memory is out of reach; "
                "call the model itself, or detach(model) first"
            )
        states = [mx.zeros((1, *self.delta_mem.state_shape))] * (self.delta_layer + 1)
        return ForwardPass(states, lambda *_: Access())

    def _check_applied(self, steering: _Steering) -> None:
        # The output's correction is added after the call, by this class itself.
        if missed := self.delta_mem.corrected - steering.applied - {"o_proj"}:
            raise ValueError(
                f"layer {self.delta_layer} ({self.frozen_class.__name__}) never called {', '.join(sorted(missed))}, so "
                "its correction was lost; use an adapter whose delta_heads or target_layers leave it out"
            )


def _projection(name: str) -> property:
    def get(self: nn.Module) -> nn.Module:
        projection = self[name]
        steering = _STEERING.get()
        if steering is None or steering.attention is not self:
            return projection
        steering.applied.add(name)
        rows = _held_rows(projection)
        return lambda x: steering.reads.correct(name, projection(x), rows)

    return property(get)


def delta_attention_class(attention: nn.Module, corrected: frozenset[str]) -> type[nn.Module]:
    """The class that a layer gets with a memory that corrects these projections."""
    return _delta_attention_class(type(attention), tuple(name for name in _PROJECTIONS if name in corrected))


@functools.cache
def _delta_attention_class(frozen_class: type[nn.Module], projections: tuple[str, ...]) -> type[nn.Module]:
    members = {name: _projection(name) for name in projections}
    members["input_name"] = list(inspect.signature(frozen_class.__call__).parameters)[1]
    return type(
        f"DeltaMem{frozen_class.__name__}", (DeltaAttention, frozen_class), members | {"frozen_class": frozen_class}
    )


def _held_rows(linear: nn.Module) -> slice | None:
    """The rows of its output that a linear layer spread over several processes holds in this one."""
    if shards(linear) == 1:
        return None
    rank, held = linear.group.rank(), linear.weight.shape[0]
    return slice(rank * held, (rank + 1) * held)
