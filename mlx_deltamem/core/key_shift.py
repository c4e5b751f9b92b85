"""The key shift: the key of a token also depends on the token that was written before it.

With keys that depend on single tokens, a memory finds the first token of a value and seldom the following ones. With a
key shift, the memory query of the token before is added to the raw key, multiplied by a learned factor for each of its
numbers. A query at a similar place then finds the token that came next. This is a short convolution on the keys
(facts.md 8.3). It needs one more row of r numbers for each state head: the memory query of the token written last.
"""

from typing import TypeVar

import mlx.core as mx
import numpy as np

_Array = TypeVar("_Array", mx.array, np.ndarray)


def square(state: _Array) -> _Array:
    """The matrices of a state, `[..., r, r]`: the state without the row that a key shift adds.

    The row is the memory query of the token written last. Nothing reads it as memory content.

    Args:
        state: `[..., r, r]`, or `[..., r + 1, r]` of an adapter with a key shift.
    """
    return state[..., : state.shape[-1], :]


def token_before(queries: mx.array, last: mx.array, seen: mx.array | None) -> tuple[mx.array, mx.array]:
    """For each token, the query of the token before it; and the query of the last token.

    Args:
        queries: `[B, T, W]`, the queries of the tokens.
        last: `[B, 1, W]`, the query of the token before the first one.
        seen: `[B, T]` bool, False for tokens to skip; None: no token is skipped.

    Returns:
        `[B, T, W]` and `[B, 1, W]`.
    """
    everything = mx.concatenate([last, queries], axis=1)
    if seen is None:
        return everything[:, :-1], everything[:, -1:]
    # For each place, the index in `everything` of the last token up to it that is not skipped.
    latest = mx.cummax(mx.where(seen, mx.arange(1, seen.shape[1] + 1), 0), axis=1)[..., None]
    latest = mx.concatenate([mx.zeros_like(latest[:, :1]), latest], axis=1)
    everything = mx.take_along_axis(everything, latest, axis=1)
    return everything[:, :-1], everything[:, -1:]
