"""What each token's inputs get of the gradient, once the gradient of the state after every token is known."""

import mlx.core as mx


def token_gradients(
    after: mx.array,
    before: mx.array,
    read_gradient: mx.array,
    keys: mx.array,
    written: mx.array,
    erase: mx.array,
    axes: tuple[int, int],
) -> tuple[mx.array, ...]:
    """The gradients of queries, keys, written, keep and erase.

    The gradient of the state obeys the recurrence run backwards, with the query as the key that is written:

    gradient before = keep * gradient after - erase * (gradient after k) kᵀ + (gradient of the read) qᵀ

    Args:
        after: The gradients of the states after some tokens.
        before: The states before them, in the same layout.
        read_gradient, keys, written, erase: Of these tokens: the same layout without the rows or without the columns.
        axes: Where the rows and the columns of a state are in that layout.
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
