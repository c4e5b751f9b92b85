"""A function with its own gradient: `mx.custom_function`, with types."""

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar, cast

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")

# Called with the arguments of the function, the gradients of its outputs and its outputs. It returns one gradient for
# each argument.
Gradient = Callable[..., Sequence[mx.array]]


def custom_gradient(gradient: Gradient) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that MLX takes its gradient from `gradient`.

    The arguments of the function must be arrays, given by position. MLX passes a function's only output, and the
    gradient of it, as an array instead of a sequence of arrays.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        custom = mx.custom_function(function)
        custom.vjp(gradient)
        # MLX's type stubs say that a custom function returns `object`; it returns what `function` returns.
        return cast(Callable[P, R], custom)

    return decorate
