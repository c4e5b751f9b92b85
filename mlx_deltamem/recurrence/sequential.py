"""The recurrence from MLX's operations: one token after the other, with a custom gradient.

Where states have a high rank, or where there are many of them, this is faster than chunks side by side (`chunked.py`):
the map of a chunk has r times as many numbers as a state. MLX's operations cost more than their arithmetic here, views
included. So a token takes few of them, and whatever can be done for many tokens at once comes after the loop.

Arrays of tokens are `[T, B, H, r, 1]`. The array of one token is a piece of them, and needs no other view to be
multiplied by a state.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_deltamem.recurrence.custom_gradient import custom_gradient
from mlx_deltamem.recurrence.kernels.build import on_gpu

# The most numbers of the states before tokens in one array. Without a gradient they are not kept, and smaller arrays
# can be freed earlier.
_BLOCK = 2**18


def sequential_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences; differentiable in every argument.

    Args:
        state: `[B, H, r, r]`, the states before the first token.
        queries, keys, written, keep, erase: `[B, T, H, r]` with T > 0; `written` is `write * v`.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token. All arrays are float32.
    """
    columns = [mx.contiguous(x.swapaxes(0, 1))[..., None] for x in (queries, keys, written, keep, erase)]
    reads, after, *_ = _scan(state[None], *columns)
    return reads.squeeze(-1).swapaxes(0, 1), after.squeeze(0)


def _gradients(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """The gradients of `_scan`, by the formulas of `definition.token_gradients`: a scan backwards."""
    _, *tokens = primals
    read_gradient, gradient, *_ = cotangents
    _, _, *history = outputs
    found = []
    for some, before in reversed(list(zip(_blocks(tokens[0], gradient.size), history, strict=True))):
        queries, keys, written, keep, erase = (x[some] for x in tokens)
        *after, gradient = _states_back(gradient, keys, keep, erase, queries, read_gradient[some])
        found.append(_token_gradients(mx.concatenate(after[::-1]), before, read_gradient[some], keys, written, erase))
    return gradient, *(mx.concatenate(list(parts)[::-1]) for parts in zip(*found, strict=True))


@custom_gradient(_gradients, once=True)
def _scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, ...]:
    """The reads `[T, B, H, r, 1]` and the final state; then, for the gradient, the states before the tokens.

    The states come in the blocks of `_blocks`.
    """
    reads, history = [], []
    for some in _blocks(keys, state.size):
        *before, state = _states(state, keys[some], keep[some], erase[some], written[some])
        history.append(mx.concatenate(before))
        reads.append(_times(history[-1], queries[some]))
    return mx.concatenate(reads), state, *history


def _blocks(tokens: mx.array, size: int) -> list[slice]:
    """The tokens cut into blocks, from the number of numbers in the states after one token."""
    length = max(1, _BLOCK // size)
    return [slice(begin, begin + length) for begin in range(0, len(tokens), length)]


def _states(state: mx.array, keys: mx.array, keep: mx.array, erase: mx.array, written: mx.array) -> list[mx.array]:
    """The states `[1, B, H, r, r]` before each token and after the last one."""
    states = [state]
    for key, row, keep_t, erase_t, written_t in _each(keys, _transposed(keys), keep, erase, written):
        change = written_t - erase_t * _times(states[-1], key)
        states.append(_plus_product(keep_t * states[-1], change, row))
    return states


def _states_back(
    gradient: mx.array,
    keys: mx.array,
    keep: mx.array,
    erase: mx.array,
    queries: mx.array,
    read_gradient: mx.array,
) -> list[mx.array]:
    """The gradients of the states after each token, from the last one to the first, and before the first one."""
    gradients = [gradient]
    rows = _transposed(mx.concatenate([keys, queries], axis=-1))
    forgotten = -erase
    for key, row, keep_t, forgotten_t, read_t in reversed(list(_each(keys, rows, keep, forgotten, read_gradient))):
        change = mx.concatenate([forgotten_t * _times(gradients[-1], key), read_t], axis=-1)
        gradients.append(_plus_product(keep_t * gradients[-1], change, row))
    return gradients


def _token_gradients(
    after: mx.array, before: mx.array, read_gradient: mx.array, keys: mx.array, written: mx.array, erase: mx.array
) -> Sequence[mx.array]:
    """`definition.token_gradients` for columns: the gradients of queries, keys, written values, `keep` and `erase`."""
    written_gradient, recalled = _times(after, keys), _times(before, keys)
    before_rows = _transposed(before)
    keys_gradient = _times(_transposed(after), written - erase * recalled)
    return (
        _times(before_rows, read_gradient),
        keys_gradient - _times(before_rows, erase * written_gradient),
        written_gradient,
        (after * before).sum(axis=-1, keepdims=True),
        -recalled * written_gradient,
    )


def _each(*arrays: mx.array) -> Iterator[tuple[mx.array, ...]]:
    """For each token, the pieces `[1, ...]` of some arrays of tokens."""
    return zip(*(mx.split(array, len(array)) for array in arrays), strict=True)


def _times(states: mx.array, columns: mx.array) -> mx.array:
    """Products of states `[..., r, r]` with columns `[..., r, 1]`, with the precision of float32 on every device."""
    # Some GPUs multiply float32 matrices with less precision (MLX's manual).
    return (states * _transposed(columns)).sum(axis=-1, keepdims=True) if on_gpu() else states @ columns


def _plus_product(states: mx.array, columns: mx.array, rows: mx.array) -> mx.array:
    """`states + columns @ rows`, also with that precision: `columns` are `[..., r, 1 or 2]`."""
    if not on_gpu():
        return mx.addmm(states, columns, rows)
    for column, row in zip(_parts(columns, -1), _parts(rows, -2), strict=True):
        states = states + column * row
    return states


def _parts(x: mx.array, axis: int) -> list[mx.array]:
    return list(mx.split(x, x.shape[axis], axis=axis))


def _transposed(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)
