"""Computes logits at a few positions of a text only: in a short pass over a small model, the head costs the most.

In mlx-lm, a language model is a head on an inner module that has the same layers. The output of that module is cut down
to the wanted positions before the head reads it.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.cache import PromptCache


@dataclass
class _Request:
    """The positions `[N, A]` int of the logits that a call of the model must return, and whether the trunk did so."""

    positions: mx.array
    met: bool = False

    def take(self, outputs: mx.array) -> mx.array:
        """`[N, A, width]` of the outputs `[N, T, width]`."""
        self.met = True
        return mx.take_along_axis(outputs, self.positions[..., None], axis=1)


_REQUEST: ContextVar[_Request | None] = ContextVar("_REQUEST", default=None)


class _Trunk(nn.Module):
    """The mixin that cuts an inner module's output down: the module's class becomes (_Trunk, Original)."""

    def __call__(self, *args: object, **kwargs: object) -> mx.array:
        hidden = super().__call__(*args, **kwargs)
        request = _REQUEST.get()
        return hidden if request is None else request.take(hidden)


@contextmanager
def head_at_positions(model: nn.Module) -> Iterator[None]:
    """Within it, `logits_at` runs the head only at the wanted positions, if the model's structure allows it.

    Other calls of the model do not change, including those from other threads.
    """
    trunk = _find_trunk(model)
    if trunk is None or isinstance(trunk, _Trunk):
        yield
        return
    original = type(trunk)
    trunk.__class__ = _trunk_class(original)
    try:
        yield
    finally:
        trunk.__class__ = original


def logits_at(model: nn.Module, ids: mx.array, cache: PromptCache, positions: mx.array) -> mx.array:
    """Run texts and return the logits at some positions. Outside `head_at_positions` the head runs at all positions.

    Args:
        model: The model.
        ids: `[N, T]` int, the tokens.
        cache: A prompt cache of the model.
        positions: `[N, A]` int.

    Returns:
        `[N, A, vocabulary]`.
    """
    request = _Request(positions)
    token = _REQUEST.set(request)
    try:
        logits = model(ids, cache=cache)
    finally:
        _REQUEST.reset(token)
    return logits if request.met else request.take(logits)


def _find_trunk(model: nn.Module) -> nn.Module | None:
    """The inner module that has the model's layers; None if there is none."""
    first = model.layers[0]
    inner = [module for module in model.modules() if module is not model and _holds(module, first)]
    # The innermost one: outer modules may pass its output on to a head of their own.
    return min(inner, key=lambda module: len(module.modules()), default=None)


def _holds(module: nn.Module, layer: nn.Module) -> bool:
    layers = module.get("layers")
    return isinstance(layers, list) and bool(layers) and layers[0] is layer


@functools.cache
def _trunk_class(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Trunk{original.__name__}", (_Trunk, original), {})
