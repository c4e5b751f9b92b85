"""Calls that keep only what goes into them for their gradient, and run again when it is taken (gradient checkpointing).

`mx.checkpoint` keeps as little. But of many calls, it lets MLX run any number again before the first of them is used;
measured with 8 layers and 16 segments of 128 tokens, that takes more than twice the memory. Here one call runs again
after the gradients of the call before are done.
"""

from collections.abc import Callable

import mlx.core as mx


class Recomputed:
    """Calls of one pass, whose gradients are taken one call after the other."""

    def __init__(self):
        # Of the call whose gradients were taken last.
        self._gradients: list[mx.array] = []

    def call(
        self, function: Callable[[list[mx.array]], list[mx.array]], own: list[mx.array], shared: list[mx.array]
    ) -> tuple[list[mx.array], list[mx.array]]:
        """Call `function` with all these arrays.

        Args:
            function: Has the same result whenever it runs, and no gradient but through its arrays.
            own: What only this call takes.
            shared: What later calls take as well. They must take it from this call's result: their gradients of it are
                then added up on the way, instead of being kept for one large sum at the end.

        Returns:
            What the function returns, and `shared` for later calls.
        """

        @mx.custom_function
        def forward(arrays: list[mx.array]) -> list[mx.array]:
            return [*function(arrays), *arrays[len(own) :]]

        @forward.vjp
        def backward(arrays: list[mx.array], cotangents: list[mx.array], _: list[mx.array]) -> list[mx.array]:
            results = len(cotangents) - len(shared)
            # This also keeps `mx.compile` from taking the first run's results for the second's.
            arrays = mx.depends(arrays, [*cotangents, *self._gradients])
            _, gradients = mx.vjp(lambda *arrays: function(list(arrays)), arrays, cotangents[:results])
            added = (own + later for own, later in zip(gradients[len(own) :], cotangents[results:], strict=True))
            self._gradients = [*gradients[: len(own)], *added]
            return self._gradients

        arrays = forward([*own, *shared])
        results = len(arrays) - len(shared)
        return arrays[:results], arrays[results:]
