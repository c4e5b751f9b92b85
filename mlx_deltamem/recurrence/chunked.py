"""The recurrence from MLX's operations: chunks of a sequence side by side, with a custom gradient.

The T tokens are cut into N chunks of C tokens, and the chunks become a part of the batch. A chunk changes each row of a
state by an affine map, row @ linear + constant. The scan has four steps:

1. Run C tokens on the r unit rows, with nothing written: this gives the linear part of the map of every chunk.
2. Run C tokens on a state of zeros: this gives the constant part.
3. Combine the maps in a tree of products, log2(N) deep: this gives the state at the start of every chunk.
4. Run C tokens from these states: this gives the state before every token.

The maps are products of `keep` and never quotients, so `keep` may be 0. The gradient is the same scan backwards in time
(`token_gradients`), with the linear parts transposed: the map of one token, keep * I - erase * k kᵀ for each row, is
symmetric.

The arrays are packed as `[C, r, M]` with M = B * H * N last, because MLX's operations are fast along one long axis and
slow along many axes of length r.
"""

import math

import mlx.core as mx

from mlx_deltamem.recurrence.custom_gradient import custom_gradient
from mlx_deltamem.recurrence.definition import token_gradients

# These numbers were measured on a CPU.
# The largest size of the linear maps of a batch with one chunk in each sequence, in numbers. For larger maps, step 1
# costs more than the chunks save. A long sequence has more to save, and a large map costs more for each of its numbers:
# so the size times r³ is also at most this many numbers for each token.
_LARGEST_MAPS, _MAPS_PER_TOKEN = 40_000, 2**20
# Shorter chunks mean fewer steps, but more maps to keep and to multiply. A larger value gives shorter chunks.
_MAP_COST = 8_000
_SHORTEST_CHUNK = 4
# How many numbers of the states before tokens are processed at a time. MLX allocates memory ahead of the computation,
# so intermediate results for all tokens at once would take most of it.
_BLOCK = 2**15


def chunked_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences; differentiable in every argument.

    Args:
        state: `[B, H, r, r]`, the states before the first token.
        queries, keys, written, keep, erase: `[B, T, H, r]` with a `chunk_count` above 1; `written` is `write * v`.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token. All arrays are float32.
    """
    chunks = chunk_count(keys.shape)
    packed = [
        _pack(x, chunks, fill) for x, fill in zip((queries, keys, written, keep, erase), (0, 0, 0, 1, 0), strict=True)
    ]
    reads, state, *_ = _packed_scan(state, *packed)
    return _unpack(reads, keys.shape), state


def chunk_count(shape: tuple[int, ...]) -> int:
    """N for keys of a shape, a power of two so that the tree is complete; 1 where `sequential_scan` is faster."""
    batch, length, heads, rank = shape
    maps = batch * heads * rank**3
    if maps > min(_LARGEST_MAPS, _MAPS_PER_TOKEN * length / rank**3):
        return 1
    chunk = max(_SHORTEST_CHUNK, math.sqrt(length * maps / _MAP_COST))
    return 1 << max(0, round(math.log2(length / chunk)))


def _pack(x: mx.array, chunks: int, fill: float) -> mx.array:
    """`[B, T, H, r]` to `[C, r, M]`; `fill` is the value of the tokens that fill up the last chunk."""
    batch, length, heads, rank = x.shape
    missing = -length % chunks
    if missing:
        x = mx.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=fill)
    x = x.reshape(batch, chunks, -1, heads, rank)
    return mx.contiguous(x.transpose(2, 4, 0, 3, 1)).reshape(-1, rank, batch * heads * chunks)


def _unpack(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The inverse of `_pack`: `[C, r, M]` to `[B, T, H, r]`."""
    batch, length, heads, rank = shape
    x = x.reshape(x.shape[0], rank, batch, heads, -1).transpose(2, 4, 0, 3, 1)
    return x.reshape(batch, -1, heads, rank)[:, :length]


def _gradients(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """The gradients of `_packed_scan`: a scan backwards, in which the queries are the keys that are written."""
    _, queries, keys, written, keep, erase = primals
    read_gradient, final_gradient, *_ = cotangents
    _, _, linear, *history = outputs
    backwards = (keys, keep, erase, queries, read_gradient)
    after, state_gradient = _history(final_gradient, linear.swapaxes(-1, -2), backwards, direction=-1)
    gradients = [
        token_gradients(gradient, before, read_gradient[some], keys[some], written[some], erase[some], axes=(2, 1))
        for (some, gradient), before in zip(_blocks(after), history, strict=True)
    ]
    return state_gradient, *(mx.concatenate(list(parts)) for parts in zip(*gradients, strict=True))


@custom_gradient(_gradients, once=True)
def _packed_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, ...]:
    """The reads `[C, r, M]` and the final state; then, for the gradient, the linear maps and the states before tokens.

    The states come in the blocks of `_blocks`.
    """
    batch, heads = state.shape[:2]
    linear = _linear_maps(keys, keep, erase, batch, heads)
    states, state = _history(state, linear, (keys, keep, erase, keys, written))
    blocks = _blocks(states)
    reads = [(before * queries[some, :, None]).sum(axis=1) for some, before in blocks]
    return mx.concatenate(reads), state, linear, *(before for _, before in blocks)


def _blocks(states: list[mx.array]) -> list[tuple[slice, mx.array]]:
    """The states cut into blocks of a few tokens: which tokens, and their states `[tokens, j, i, M]`."""
    length = max(1, _BLOCK // states[0].size)
    slices = [slice(t, t + length) for t in range(0, len(states), length)]
    return [(some, mx.stack(states[some])) for some in slices]


def _history(
    state: mx.array, linear: mx.array, packed: tuple[mx.array, ...], direction: int = 1
) -> tuple[list[mx.array], mx.array]:
    """The packed states before each token, and the final states: steps 2 to 4.

    Args:
        state: `[B, H, r, r]`, the states to begin with.
        linear: The linear maps of the chunks, as `_linear_maps` returns them.
        packed: The keys that are erased, `keep`, `erase`, the keys that are written and the values that are written,
            each `[C, r, M]`.
        direction: 1, or -1 to begin with the last token.

    Returns:
        A list of the states before (with -1: after) each token of a chunk, `[j, i, M]` with j = column and i = row; and
        the states after the last (with -1: before the first) token, `[B, H, r, r]`.
    """
    keys, keep, erase, write_keys, written = packed
    batch, heads, rank, _ = state.shape
    tokens = _tokens(keys[:, :, None], keep, erase, write_keys[:, :, None], written)[::direction]
    *_, constant = _states(mx.zeros((rank, rank, keys.shape[-1])), tokens)
    constant = _rows(constant[:, None], batch, heads)
    # On the CPU, because some GPUs multiply float32 matrices with less precision than float32 (MLX's manual).
    with mx.stream(mx.cpu):
        starts = _starts(state[..., None, :], linear[::direction], constant[::direction])[::direction]
    *history, ends = _states(_lanes(starts), tokens)
    final = _rows(ends[:, None], batch, heads)[::direction][-1:]
    return history[::direction], final.squeeze((0, -2))


def _starts(rows: mx.array, linear: mx.array, constant: mx.array) -> mx.array:
    """The rows at the start of each of N chunks, `[N, ..., 1, r]`: step 3.

    The maps are combined in pairs, and the function calls itself with the N / 2 combined maps to find the rows at the
    start of each pair. The second chunk of a pair starts with those rows as the first one changes them.

    Args:
        rows: `[..., 1, r]`, the rows at the start of the first chunk.
        linear, constant: `[N, ..., r, r]` and `[N, ..., 1, r]`, the map of each chunk.
    """
    if len(linear) == 1:
        return rows[None]
    pairs = linear[::2] @ linear[1::2], _mapped(constant[::2], linear[1::2], constant[1::2])
    before_first = _starts(rows, *pairs)
    before_second = _mapped(before_first, linear[::2], constant[::2])
    return mx.stack([before_first, before_second], axis=1).flatten(0, 1)


def _mapped(rows: mx.array, linear: mx.array, constant: mx.array) -> mx.array:
    """`rows @ linear + constant`. Rows of zeros become the constant, also where a map is too large for float32.

    Keys that are not normalised may make a map overflow although nothing is in the state that it could act on.
    """
    nothing = (rows == 0).all(axis=-1, keepdims=True)
    return mx.where(nothing, constant, mx.addmm(constant, rows, linear))


def _linear_maps(keys: mx.array, keep: mx.array, erase: mx.array, batch: int, heads: int) -> mx.array:
    """The linear part of the map of every chunk for each row i, `[N, B, H, i, r, j]`: step 1."""
    rank, lanes = keys.shape[1:]
    images = mx.broadcast_to(mx.eye(rank)[:, :, None, None], (rank, rank, rank, lanes))
    for key, keep_t, erase_t in _tokens(keys[:, :, None, None], keep, erase):
        images = _erased(images, (images * key).sum(axis=0), key, keep_t, erase_t)
    return mx.contiguous(_rows(images, batch, heads))


def _states(states: mx.array, tokens: list[tuple[mx.array, ...]]) -> list[mx.array]:
    """The packed states `[j, i, M]` before each token of the chunks and after the last one."""
    all_states = [states]
    for key, keep, erase, write_key, written in tokens:
        states = _updated(states, (states * key).sum(axis=0), key, keep, erase, write_key, written)
        all_states.append(states)
    return all_states


@mx.compile
def _updated(
    states: mx.array,
    recalled: mx.array,
    key: mx.array,
    keep: mx.array,
    erase: mx.array,
    write_key: mx.array,
    written: mx.array,
) -> mx.array:
    return keep * states - erase * recalled * key + written * write_key


@mx.compile
def _erased(states: mx.array, recalled: mx.array, key: mx.array, keep: mx.array, erase: mx.array) -> mx.array:
    return keep * states - erase * recalled * key


def _tokens(*packed: mx.array) -> list[tuple[mx.array, ...]]:
    """For each token of the chunks, the arrays of it."""
    return list(zip(*([x.squeeze(0) for x in mx.split(array, len(array))] for array in packed), strict=True))


def _rows(packed: mx.array, batch: int, heads: int) -> mx.array:
    """Packed states `[j, n, i, M]` as rows `[N, B, H, i, n, j]`, to be multiplied by maps."""
    columns, count, rank, _ = packed.shape
    return packed.reshape(columns, count, rank, batch, heads, -1).transpose(5, 3, 4, 2, 1, 0)


def _lanes(rows: mx.array) -> mx.array:
    """The inverse of `_rows` for single rows: `[N, B, H, i, 1, j]` to `[j, i, M]`."""
    rank = rows.shape[-1]
    return rows.squeeze(-2).transpose(4, 3, 1, 2, 0).reshape(rank, rank, -1)
