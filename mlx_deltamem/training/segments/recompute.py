"""Gradient checkpointing: calls that keep only their inputs for the gradient, and run again when it is computed.

`mx.checkpoint` keeps as little. But of many calls, it lets MLX run several again before the first of them is used: with
8 layers and 16 segments of 128 tokens, it needed more than twice the memory. Here a call runs again only after the
gradients of the call before it are complete.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

# Lists, tuples and dicts of arrays, caches, numbers, texts and None.
Tree = TypeVar("Tree")


class Recomputed:
    """The checkpointed calls of one pass. Their gradients are computed one call after the other."""

    def __init__(self):
        # The gradients of the call whose gradients were computed last.
        self._gradients: list[mx.array] = []

    def call(
        self, function: Callable[[list[mx.array]], list[mx.array]], own: list[mx.array], shared: list[mx.array]
    ) -> tuple[list[mx.array], list[mx.array]]:
        """Call a function with all these arrays.

        Args:
            function: Gives the same result each time, and has gradients only through its arrays.
            own: The arrays that only this call takes.
            shared: The arrays that later calls take as well. These must take them from this call's result: their
                gradients are then added up on the way, instead of being kept for one large sum at the end.

        Returns:
            The function's result, and `shared` for later calls.
        """

        @mx.custom_function
        def forward(arrays: list[mx.array]) -> list[mx.array]:
            return [*function(arrays), *arrays[len(own) :]]

        @forward.vjp
        def backward(arrays: list[mx.array], cotangents: list[mx.array], _: list[mx.array]) -> list[mx.array]:
            results = len(cotangents) - len(shared)
            # This also keeps `mx.compile` from using the results of the first run for the second.
            arrays = mx.depends(arrays, [*cotangents, *self._gradients])
            _, gradients = mx.vjp(lambda *arrays: function(list(arrays)), arrays, cotangents[:results])
            added = (own + later for own, later in zip(gradients[len(own) :], cotangents[results:], strict=True))
            self._gradients = [*gradients[: len(own)], *added]
            return self._gradients

        found = cast(list[mx.array], forward([*own, *shared]))
        results = len(found) - len(shared)
        return found[:results], found[results:]


class _Place:
    """Stands for an array that was taken out of a tree."""


_PLACE = _Place()


def take_apart(tree: Tree) -> tuple[list[mx.array], Tree]:
    """Take the float arrays, which may have a gradient, out of a tree; return them and the tree with placeholders."""
    arrays = [leaf for leaf in leaves(tree) if isinstance(leaf, mx.array) and _is_float(leaf)]
    return arrays, tree_map(lambda leaf: _PLACE if _is_float(leaf) else leaf, tree)


def put_together(arrays: list[mx.array], outline: Tree) -> Tree:
    """Put arrays in the places of a tree from `take_apart`."""
    remaining = iter(arrays)
    return tree_map(lambda leaf: next(remaining) if leaf is _PLACE else leaf, outline)


def replace_leaf(tree: Tree, old: object, new: object) -> Tree:
    """Replace a leaf of a tree, compared by identity."""
    return tree_map(lambda leaf: new if leaf is old else leaf, tree)


def leaves(tree: object) -> list[object]:
    """Return the leaves of a tree, in order."""
    return [item[1] for item in tree_flatten(tree)]


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
