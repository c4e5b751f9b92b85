"""The recurrence of δ-mem as it is defined: each token reads the state and then writes it by the delta rule.

For each token, with `S` the state of one head (row = value, column = key) and gates that act on rows:

    read = S q
    S    = keep * S - erase * (S k) kᵀ + write * v kᵀ

Source: arXiv 2605.12357, section 3; facts.md 1.3 (a token reads before it writes). The tests compare every faster form
of the recurrence with `delta_scan_reference`.
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
    """Run the recurrence in a loop over the tokens; arguments, results and errors are those of `delta_scan`.

    MLX can differentiate it any number of times.
    """
    state, tokens = check_inputs(state, (q, k, v, keep, erase, write), mask)
    queries, keys, values, keep, erase, write = tokens
    return by_steps(state, queries, keys, write * values, keep, erase)


def by_steps(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences by `step`.

    Args:
        state: `[B, H, r, r]` float32, the states before the first token.
        queries, keys, written, keep, erase: `[B, T, H, r]` float32; `written` is `write * v`.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token.
    """
    reads = [mx.zeros_like(queries[:, :0])]
    for t in range(queries.shape[1]):
        read, state = step(state, *(x[:, t] for x in (queries, keys, written, keep, erase)))
        reads.append(read[:, None])
    return mx.concatenate(reads, axis=1), state


def step(
    state: mx.array, query: mx.array, key: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write one token: `S q` and `keep * S + (written - erase * (S k)) kᵀ`.

    Args:
        state: `[B, H, r, r]` float32.
        query, key, written, keep, erase: `[B, H, r]` float32; `written` is `write * v`, the value times its gate.

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
    """Compute the gradients of tokens from the states before them and the gradients of the states after them.

    With `G` the gradient of the state after a token and `g` the gradient of its read, the chain rule applied to `step`
    gives, for one token:

        query:   Sᵀ g
        key:     Gᵀ (written - erase * (S k)) - Sᵀ (erase * (G k))
        written: G k
        keep:    the sums of the rows of G * S
        erase:   -(S k) * (G k)
        state:   keep * G - erase * (G k) kᵀ + g qᵀ

    The last line is the recurrence again, run backwards, with `q` as the key that is written and `g` as the value. So
    whoever calls this function gets `G` for all tokens from the scan that computes the states.

    Args:
        after: `G`, the gradients of the states after the tokens.
        before: `S`, the states before the tokens, in the same layout.
        read_gradient, keys, written, erase: One vector for each token, in the same layout with one axis less.
        axes: The axes of the rows and of the columns of a state in that layout.

    Returns:
        The gradients of the queries, the keys, the written values, `keep` and `erase`.
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


def check_inputs(
    state: mx.array, tokens: tuple[mx.array, ...], mask: mx.array | None
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Check the arguments of `delta_scan` and bring them to one shape and dtype.

    Returns:
        The state and the tuple q, k, v, keep, erase, write, each `[B, T, H, r]`; all float32. A masked token has a
        `keep` of 1 and zeros for the rest, so that it reads zeros and leaves the state as it is.

    Raises:
        ValueError: An argument is not a real array, or the shapes do not fit together.
    """
    arrays = {"state": state, **dict(zip(("q", "k", "v", "keep", "erase", "write"), tokens, strict=True)), "mask": mask}
    for name, array in arrays.items():
        # MLX also broadcasts numbers, so a gate may be one.
        is_number = name in ("keep", "erase", "write") and isinstance(array, int | float)
        if not (isinstance(array, mx.array) or is_number or (name == "mask" and array is None)):
            raise ValueError(
                f"delta_scan got a {type(array).__name__} as {name}; expected an array of MLX: mx.array({name})"
            )
        if isinstance(array, mx.array) and array.dtype == mx.complex64:
            raise ValueError(f"delta_scan got complex numbers as {name}; expected real ones")
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
        raise ValueError(
            f"delta_scan got a mask of shape {mask.shape} and keys of shape {shape}; "
            f"expected the mask to be {(batch, length)}"
        )
    try:
        tokens = tuple(mx.broadcast_to(x, shape).astype(mx.float32) for x in tokens)
    except ValueError:
        raise ValueError(
            f"delta_scan got inputs of shapes {[mx.array(x).shape for x in tokens]}; expected all {shape}"
        ) from None
    if mask is not None:
        seen = mask.astype(mx.bool_)[:, :, None, None]
        idle = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
        tokens = tuple(mx.where(seen, x, idle_value) for x, idle_value in zip(tokens, idle, strict=True))
    return state.astype(mx.float32), tokens
