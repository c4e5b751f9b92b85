"""Diverts the calls of a model's layers to another function for a while."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

import mlx.nn as nn

# Called with a layer, its own call (bound to it), and the arguments.
RunLayer = Callable[[nn.Module, Callable[..., object], tuple, dict], object]

_RUN: ContextVar[RunLayer | None] = ContextVar("_RUN", default=None)
# The number of threads that divert a layer, by the identity of the layer.
_USERS: Counter[int] = Counter()
_LOCK = Lock()


@contextmanager
def running_layers(layers: Sequence[nn.Module], run: RunLayer) -> Iterator[None]:
    """Within it, calls of these layers from this thread go to `run`, which returns their result."""
    _take(layers)
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)
        _give_back(layers)


class _Diverted(nn.Module):
    """The mixin that diverts the calls of a layer: the layer's class becomes (_Diverted, Original)."""

    own_class: type[nn.Module]

    def __call__(self, *args: object, **kwargs: object) -> object:
        own_call = functools.partial(self.own_class.__call__, self)
        run = _RUN.get()
        return own_call(*args, **kwargs) if run is None else run(self, own_call, args, kwargs)


@functools.cache
def _diverted_class(own_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Diverted{own_class.__name__}", (_Diverted, own_class), {"own_class": own_class})


def _take(layers: Sequence[nn.Module]) -> None:
    with _LOCK:
        for layer in layers:
            if not isinstance(layer, _Diverted):
                layer.__class__ = _diverted_class(type(layer))
            _USERS[id(layer)] += 1


def _give_back(layers: Sequence[nn.Module]) -> None:
    with _LOCK:
        for layer in layers:
            _USERS[id(layer)] -= 1
            if not _USERS[id(layer)]:
                del _USERS[id(layer)]
                layer.__class__ = layer.own_class
