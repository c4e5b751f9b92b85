"""A function with its own gradient: `mx.custom_function`, with types."""

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar, cast

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")

# Called with the arguments of the function, the gradients of its outputs and its outputs. It returns one gradient for
# each argument.
Gradient = Callable[..., Sequence[mx.array]]


def custom_gradient(gradient: Gradient, once: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that MLX takes its gradient from `gradient`.

    The arguments of the function must be arrays, given by position. MLX passes a function's only output, and the
    gradient of it, as an array instead of a sequence of arrays.

    Args:
        gradient: The gradient.
        once: Whether the gradient has no gradient itself, because it uses outputs that MLX takes for constants. Then
            MLX raises a ValueError instead of a wrong gradient of the gradient.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        custom = mx.custom_function(function)
        custom.vjp(_once(gradient) if once else gradient)
        # MLX's type stubs say that a custom function returns `object`; it returns what `function` returns.
        return cast(Callable[P, R], custom)

    return decorate


def _once(gradient: Gradient) -> Gradient:
    """A gradient of a function of several outputs that refuses to be differentiated."""

    def found(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        return gradient(primals, cotangents, [_constant(output) for output in outputs])

    return found


def _refuse(*_: object) -> Sequence[mx.array]:
    raise ValueError(
        "the gradient of a scan was to be differentiated, and it has no gradient; expected gradients of the first "
        "order, so use mlx_deltamem.recurrence.definition.delta_scan_reference for others"
    )


@custom_gradient(_refuse)
def _constant(x: mx.array) -> mx.array:
    return x
