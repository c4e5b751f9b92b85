"""Run the layers of a model in a way of one's own, for a while."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

import mlx.nn as nn

# Given the layer, its own call (bound to it), and the arguments.
RunLayer = Callable[[nn.Module, Callable, tuple, dict], object]

_RUN: ContextVar[RunLayer | None] = ContextVar("_RUN", default=None)
# By the identity of a layer, how many threads run it in ways of their own just now.
_USERS: Counter[int] = Counter()
_LOCK = Lock()


@contextmanager
def running_layers(layers: Sequence[nn.Module], run: RunLayer) -> Iterator[None]:
    """Within it, calls of these layers from this thread go to `run`; its result is theirs."""
    _take(layers)
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)
        _give_back(layers)


class _Diverted:
    """The part of such a layer's class that is not mlx-lm's: its class becomes (_Diverted, Original)."""

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
