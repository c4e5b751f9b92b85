"""The recurrence of δ-mem as it is defined: a state read and then written by the delta rule, token after token.

For each token, with `S` the state of one head (row = value, column = key) and gates that act on rows:

    read = S q
    S    = keep * S - erase * (S k) kᵀ + write * v kᵀ

(arXiv 2605.12357, section 3; facts.md 1.3: a token reads before it writes.) Every faster form is compared with it.
"""

import mlx.core as mx


def delta_scan_reference(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """The reads and the last states, one token after the other; arguments and results are those of `delta_scan`."""
    state, tokens = check_inputs(state, (q, k, v, keep, erase, write), mask)
    reads = [mx.zeros_like(tokens[0][:, :0])]
    for t in range(tokens[0].shape[1]):
        query, key, value, keep_t, erase_t, write_t = (x[:, t] for x in tokens)
        read, state = step(state, query, key, write_t * value, keep_t, erase_t)
        reads.append(read[:, None])
    return mx.concatenate(reads, axis=1), state


def check_inputs(
    state: mx.array, tokens: tuple[mx.array, ...], mask: mx.array | None
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Check the shapes of `delta_scan`'s arguments.

    Returns:
        The state and q, k, v, keep, erase, write `[B, T, H, r]`, all float32; a masked token reads and writes nothing.

    Raises:
        ValueError: The shapes do not fit together.
    """
    shape = tokens[1].shape
    if len(shape) != 4:
        raise ValueError(f"delta_scan got keys of shape {shape}; expected [B, T, H, r]")
    batch, length, heads, rank = shape
    if state.shape != (batch, heads, rank, rank):
        raise ValueError(
            f"delta_scan got a state of shape {state.shape} and keys of shape {shape}; "
            f"expected the state to be {(batch, heads, rank, rank)}"
        )
    if mask is not None and mask.shape != (batch, length):
        raise ValueError(f"delta_scan got a mask of shape {mask.shape}; expected {(batch, length)}, as the keys have")
    try:
        tokens = tuple(mx.broadcast_to(x, shape).astype(mx.float32) for x in tokens)
    except ValueError:
        raise ValueError(f"delta_scan got inputs of shapes {[x.shape for x in tokens]}; expected all {shape}") from None
    if mask is not None:
        written = mask.astype(mx.bool_)[:, :, None, None]
        idle = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        tokens = tuple(mx.where(written, x, nothing) for x, nothing in zip(tokens, idle, strict=True))
    return state.astype(mx.float32), tokens


def step(
    state: mx.array, query: mx.array, key: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write one token.

    Args:
        state: `[B, H, r, r]` float32.
        query, key, written, keep, erase: `[B, H, r]` float32; `written` is the value times its gate.

    Returns:
        The read `[B, H, r]` and the new state.
    """
    row_key = key[..., None, :]
    read = (state * query[..., None, :]).sum(axis=-1)
    recalled = (state * row_key).sum(axis=-1)
    state = keep[..., None] * state + (written - erase * recalled)[..., None] * row_key
    return read, state


def token_gradients(
    after: mx.array,
    before: mx.array,
    read_gradient: mx.array,
    keys: mx.array,
    written: mx.array,
    erase: mx.array,
    axes: tuple[int, int],
) -> tuple[mx.array, ...]:
    """The gradients of the queries, keys, written values, keep and erase gates of some tokens.

    The gradient of the state obeys the recurrence run backwards, with the query as the key that is written:

    gradient before = keep * gradient after - erase * (gradient after k) kᵀ + (gradient of the read) qᵀ

    Args:
        after: The gradients of the states after the tokens.
        before: The states before the tokens, in the same layout.
        read_gradient, keys, written, erase: One row or one column for each token: the same layout with one axis less.
        axes: The axes of the rows and of the columns of a state in that layout.
    """
    rows, columns = axes
    row_key = mx.expand_dims(keys, rows)
    written_gradient = (after * row_key).sum(axis=columns)
    recalled = (before * row_key).sum(axis=columns)
    change, forgotten = written - erase * recalled, erase * written_gradient
    change, forgotten, read_gradient = (mx.expand_dims(x, columns) for x in (change, forgotten, read_gradient))
    return (
        (before * read_gradient).sum(axis=rows),
        (after * change).sum(axis=rows) - (before * forgotten).sum(axis=rows),
        written_gradient,
        (after * before).sum(axis=columns),
        -recalled * written_gradient,
    )
