"""A function with its own gradient: `mx.custom_function`, with types."""

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar, cast

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")

# Called with the arguments of the function, the gradients of its outputs and its outputs. It returns one gradient for
# each argument.
Gradient = Callable[..., Sequence[mx.array]]


def custom_gradient(
    gradient: Gradient, definition: Callable[..., Sequence[mx.array]] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that MLX takes its gradient from `gradient`.

    The arguments of the function must be arrays, given by position. MLX passes a function's only output, and the
    gradient of it, as an array instead of a sequence of arrays.

    Args:
        gradient: The gradient.
        definition: A function of the same arguments whose results are the first ones of the decorated function. The
            others then have no gradient: `gradient` may use them as it finds them. MLX would take them for constants,
            so gradients of the gradient come from this function. None: `gradient` only uses the arguments and the
            gradients of the outputs, and MLX can differentiate it.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        custom = mx.custom_function(function)
        custom.vjp(gradient if definition is None else _differentiable(gradient, definition))
        # MLX's type stubs say that a custom function returns `object`; it returns what `function` returns.
        return cast(Callable[P, R], custom)

    return decorate


def _differentiable(gradient: Gradient, definition: Callable[..., Sequence[mx.array]]) -> Gradient:
    """A gradient that has a gradient itself: that of the gradient of `definition`."""

    def first(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> Sequence[mx.array]:
        count, found = len(primals), gradient(primals, cotangents, outputs)

        def second(arrays: Sequence[mx.array], directions: Sequence[mx.array], _: object) -> list[mx.array]:
            known = list(arrays[:-count])
            _, gradients = mx.vjp(lambda *each: _gradients(definition, each, count), known, list(directions))
            return [*gradients, *map(mx.zeros_like, arrays[-count:])]

        # MLX keeps this function as long as its results. So it gets what was found, and does not hold the outputs.
        @custom_gradient(second)
        def with_gradient(*arrays: mx.array) -> tuple[mx.array, ...]:
            return arrays[-count:]

        return with_gradient(*primals, *cotangents, *map(mx.stop_gradient, found))

    return first


def _gradients(function: Callable[..., Sequence[mx.array]], arrays: Sequence[mx.array], count: int) -> list[mx.array]:
    """The gradients of a function at the first `count` arrays; the others are the gradients of its outputs."""

    def product(*primals: mx.array) -> mx.array:
        # There may be gradients of outputs that this function does not have.
        pairs = zip(function(*primals), arrays[count:], strict=False)
        return mx.stack([(output * cotangent).sum() for output, cotangent in pairs]).sum()

    return mx.vjp(product, list(arrays[:count]), [mx.array(1.0)])[1]
