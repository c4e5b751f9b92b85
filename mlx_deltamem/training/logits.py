"""Logits at a few positions of a text only: the head is the largest part of a short pass over a small model.

In mlx-lm, a language model is a head on an inner module that has the same layers. That module's output is cut down to
the positions that are asked for, before the head sees it.
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
    """The positions that a call of the model is to give logits at, `[N, A]` int, and whether the trunk saw to it."""

    positions: mx.array
    met: bool = False

    def take(self, outputs: mx.array) -> mx.array:
        """`[N, A, width]` of the outputs `[N, T, width]`."""
        self.met = True
        return mx.take_along_axis(outputs, self.positions[..., None], axis=1)


_REQUEST: ContextVar[_Request | None] = ContextVar("_REQUEST", default=None)


class _Trunk:
    """The part of an inner module's class that is not mlx-lm's: its class becomes (_Trunk, Original)."""

    def __call__(self, *args: object, **kwargs: object) -> mx.array:
        hidden = super().__call__(*args, **kwargs)
        request = _REQUEST.get()
        return hidden if request is None else request.take(hidden)


@contextmanager
def head_at_positions(model: nn.Module) -> Iterator[None]:
    """Within it, `logits_at` runs the head at the positions that it is asked for only, where the model allows it.

    Other calls of the model, those from other threads too, are as ever.
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
    """Run texts and give the logits at some positions; without `head_at_positions`, the head runs at all of them.

    Args:
        model: The model.
        ids: `[N, T]` int.
        cache: Its prompt cache.
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
    """The inner module that has the model's layers, if there is one."""
    first = model.layers[0]
    inner = [module for module in model.modules() if module is not model and _holds(module, first)]
    # The innermost: outside it there may be other modules that hand its output on to a head of theirs.
    return min(inner, key=lambda module: len(module.modules()), default=None)


def _holds(module: nn.Module, layer: nn.Module) -> bool:
    layers = module.get("layers")
    return isinstance(layers, list) and bool(layers) and layers[0] is layer


@functools.cache
def _trunk_class(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Trunk{original.__name__}", (_Trunk, original), {})
