"""A module that knows whether its arrays may have been changed in place.

`array *= 2` and `array[0] = 2` change an MLX array itself, and nothing in Python tells of it. So whoever keeps
something that was made from arrays must know who can reach them.
"""

import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_values


def _references(arrays: Iterable[object]) -> int:
    """The largest number of references to one of some arrays."""
    return max(map(sys.getrefcount, arrays))


# The references to an array that only one dictionary holds.
_ALONE = _references({"": mx.array(0)}.values())


class Watched(nn.Module):
    """A module of arrays that tells whether they may have changed since `watch`.

    They may have changed if another array was set, or if one was handed out: by its attribute or its key, or together
    with the others (`parameters`, `items`, ...). The check only compares identities, because it is made for each token.
    """

    # A value of the class, because a copy is made without calling `__init__`.
    _watched: Sequence[mx.array] | None = None

    def watch(self) -> bool:
        """Begin to watch the arrays; returns False if somebody still holds one of them and could change it unseen."""
        self._handed_out()
        is_alone = _references(super().values()) <= _ALONE
        # nn.Module would take a list for parameters.
        object.__setattr__(self, "_watched", list(super().values()))
        return is_alone

    def may_have_changed(self) -> bool:
        """Whether an array may have changed since `watch`."""
        watched = self._watched
        return watched is None or any(map(operator.is_not, watched, dict.values(self)))

    def _handed_out(self) -> None:
        object.__setattr__(self, "_watched", None)

    def __getattr__(self, name: str) -> mx.array:
        self._handed_out()
        array: mx.array = super().__getattr__(name)
        return array

    def __getitem__(self, name: str) -> mx.array:
        self._handed_out()
        array: mx.array = super().__getitem__(name)
        return array

    def __iter__(self) -> Iterator[str]:
        # With a method of its own, `dict(module)` also asks for each item.
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """`dict.get`."""
        self._handed_out()
        return super().get(name, default)

    def items(self) -> "dict_items[str, mx.array]":
        """`dict.items`."""
        self._handed_out()
        return super().items()

    def values(self) -> "dict_values[str, mx.array]":
        """`dict.values`."""
        self._handed_out()
        return super().values()
