"""The key shift: the key of a token knows the token that was written before it.

A memory with keys of single tokens finds the first token of a value and seldom the next ones. With a key shift the
memory query of the token before is added to the raw key, times a learned factor for each number: whoever reads at a
like place then finds what came next. It is a short convolution on keys (facts.md 8.3) that needs one row of `r` numbers
more for each state head, the query of the token written last.
"""

import mlx.core as mx


def token_before(queries: mx.array, last: mx.array, seen: mx.array | None) -> tuple[mx.array, mx.array]:
    """For each token the query of the token before it, and the query of the last token.

    Args:
        queries: `[B, T, W]`.
        last: `[B, 1, W]`, the query of the token before the first.
        seen: `[B, T]` bool, False for tokens that are passed over; None: all are seen.

    Returns:
        `[B, T, W]` and `[B, 1, W]`.
    """
    everything = mx.concatenate([last, queries], axis=1)
    if seen is None:
        return everything[:, :-1], everything[:, -1:]
    latest = mx.cummax(mx.where(seen, mx.arange(1, seen.shape[1] + 1), 0), axis=1)[..., None]
    latest = mx.concatenate([mx.zeros_like(latest[:, :1]), latest], axis=1)
    everything = mx.take_along_axis(everything, latest, axis=1)
    return everything[:, :-1], everything[:, -1:]
