"""Trees of arrays and other things, as lists of their arrays: what a function transformation can follow."""

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

Tree = object  # lists, tuples and dicts of arrays, caches, numbers, strings, None


class _Place:
    """Where an array was."""


_PLACE = _Place()


def take_apart(tree: Tree) -> tuple[list[mx.array], Tree]:
    """The float arrays of a tree, which may have a gradient, and the tree with places instead of them."""
    arrays = [leaf for _, leaf in tree_flatten(tree) if _is_float(leaf)]
    return arrays, tree_map(lambda leaf: _PLACE if _is_float(leaf) else leaf, tree)


def put_together(arrays: list[mx.array], outline: Tree) -> Tree:
    """The way back from `take_apart`, with other arrays."""
    remaining = iter(arrays)
    return tree_map(lambda leaf: next(remaining) if leaf is _PLACE else leaf, outline)


def replace_leaf(tree: Tree, old: object, new: object) -> Tree:
    """A tree with another leaf in the place of one, which is told by its identity."""
    return tree_map(lambda leaf: new if leaf is old else leaf, tree)


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
