"""The recurrence from MLX's operations: chunks of a sequence side by side, with a gradient that runs backwards.

T tokens are cut into N chunks of C, and the chunks become one more batch axis. What a chunk does to a row of the state
is an affine map, row @ linear + constant:

1. C steps on the r unit rows give the linear part of every chunk's map;
2. C steps from a state of zeros give the constant part;
3. a tree of products of these maps, log2(N) deep, gives the state at the start of every chunk;
4. C steps from those states give the state before every token.

All of it is products of `keep`, never quotients, so that `keep` may be 0. Backwards in time, as the gradient goes, the
linear part is the same, transposed: that of one token, keep * I - erase * k kᵀ, is symmetric.

The steps work on arrays packed as `[C, r, M]` with M = B * H * N last, because MLX's operations are fast along a long
axis and slow along many of length r.
"""

import math

import mlx.core as mx

from mlx_deltamem.recurrence.definition import token_gradients

# All measured on a CPU. Where the linear maps of all sequences, at one chunk each, hold more numbers than this, making
# them costs more than the steps they save.
_LARGEST_MAPS = 40_000
# Shorter chunks are fewer steps, but more maps to keep and to multiply: the larger this, the shorter the chunks.
_MAP_COST = 8_000
_SHORTEST_CHUNK = 4
# What needs the states of tokens takes as many at a time as hold this many numbers: MLX allocates ahead of what it has
# computed, and intermediate results for all tokens at once would take most of the memory.
_BLOCK = 2**15


def chunked_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences.

    Args:
        state: `[B, H, r, r]`, the states before the first token.
        queries, keys, written, keep, erase: `[B, T, H, r]` with T > 0; `written` are the values times their gate.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token. All arrays are float32.
    """
    chunks = _chunk_count(keys.shape)
    packed = [
        _pack(x, chunks, fill) for x, fill in zip((queries, keys, written, keep, erase), (0, 0, 0, 1, 0), strict=True)
    ]
    reads, state, *_ = _packed_scan(state, *packed)
    return _unpack(reads, keys.shape), state


def _chunk_count(shape: tuple[int, ...]) -> int:
    """N, a power of two for the tree; 1 where one step after the other is faster."""
    batch, length, heads, rank = shape
    maps = batch * heads * rank**3
    if maps > _LARGEST_MAPS:
        return 1
    chunk = max(_SHORTEST_CHUNK, math.sqrt(length * maps / _MAP_COST))
    return 2 ** max(0, round(math.log2(length / chunk)))


def _pack(x: mx.array, chunks: int, fill: float) -> mx.array:
    """`[B, T, H, r]` to `[C, r, M]`, the last chunk filled up with tokens that do nothing."""
    batch, length, heads, rank = x.shape
    missing = -length % chunks
    if missing:
        x = mx.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=fill)
    x = x.reshape(batch, chunks, -1, heads, rank)
    return mx.contiguous(x.transpose(2, 4, 0, 3, 1)).reshape(-1, rank, batch * heads * chunks)


def _unpack(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The way back from `_pack` to `[B, T, H, r]`."""
    batch, length, heads, rank = shape
    x = x.reshape(x.shape[0], rank, batch, heads, -1).transpose(2, 4, 0, 3, 1)
    return x.reshape(batch, -1, heads, rank)[:, :length]


@mx.custom_function
def _packed_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, ...]:
    """Reads `[C, r, M]` and the final state; for the gradient, the linear maps and blocks of states before tokens."""
    batch, heads = state.shape[:2]
    chunks = keys.shape[-1] // (batch * heads)
    linear = _linear_maps(keys, keep, erase, batch, heads) if chunks > 1 else mx.zeros((0, 0))
    states, state = _history(state, linear, (keys, keep, erase, keys, written))
    blocks = _blocks(states)
    reads = [(before * queries[some, :, None]).sum(axis=1) for some, before in blocks]
    return mx.concatenate(reads), state, linear, *(before for _, before in blocks)


@_packed_scan.vjp
def _gradients(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """From the recurrence run backwards, with the query as the key that is written (`token_gradients`)."""
    _, queries, keys, written, keep, erase = primals
    read_gradient, final_gradient, *_ = cotangents
    _, _, linear, *history = outputs
    backwards = (keys, keep, erase, queries, read_gradient)
    after, state_gradient = _history(final_gradient, linear.swapaxes(-1, -2), backwards, direction=-1)
    gradients = []
    for (some, gradient), before in zip(_blocks(after), history, strict=True):
        tokens = (x[some] for x in (read_gradient, keys, written, erase))
        gradients.append(token_gradients(gradient, before, *tokens, axes=(2, 1)))
    return state_gradient, *(mx.concatenate(parts) for parts in zip(*gradients, strict=True))


def _blocks(states: list[mx.array]) -> list[tuple[slice, mx.array]]:
    """The states of some tokens at a time, `[C, j, i, M]`, and which tokens these are."""
    length = max(1, _BLOCK // states[0].size)
    slices = [slice(t, t + length) for t in range(0, len(states), length)]
    return [(some, mx.stack(states[some])) for some in slices]


def _history(
    state: mx.array, linear: mx.array, packed: tuple[mx.array, ...], direction: int = 1
) -> tuple[list[mx.array], mx.array]:
    """The states before each token `[j, i, M]` (j = column, i = row) and those after the last `[B, H, r, r]`.

    Args:
        state: `[B, H, r, r]`, the states to begin with.
        linear: The chunks' linear maps, as `_linear_maps` returns them; empty for one chunk.
        packed: The keys that are erased, `keep`, `erase`, the keys that are written and what is written, `[C, r, M]`.
        direction: -1 begins with the last token, and returns the state after every token and before the first.
    """
    keys, keep, erase, write_keys, written = packed
    batch, heads, rank, _ = state.shape
    tokens = _tokens(keys[:, :, None], keep, erase, write_keys[:, :, None], written)[::direction]
    starts = state[None, ..., None, :]
    if linear.size:
        *_, constant = _states(mx.zeros((rank, rank, keys.shape[-1])), tokens)
        constant = _rows(constant[:, None], batch, heads)
        # MLX documents that some GPUs multiply float32 matrices with less precision than that.
        with mx.stream(mx.cpu):
            starts = _starts(starts[0], linear[::direction], constant[::direction])[::direction]
    *history, ends = _states(_lanes(starts), tokens)
    final = _rows(ends[:, None], batch, heads)[::direction][-1:]
    return history[::direction], final.squeeze((0, -2))


def _starts(rows: mx.array, linear: mx.array, constant: mx.array) -> mx.array:
    """What becomes of rows `[..., 1, r]` before each of N maps `[N, ..., r, r]` and `[N, ..., 1, r]` in turn.

    The first of every two maps begins with what all pairs before it make; the second with what the first makes of that.
    """
    if len(linear) == 1:
        return rows[None]
    pairs = linear[::2] @ linear[1::2], mx.addmm(constant[1::2], constant[::2], linear[1::2])
    before_first = _starts(rows, *pairs)
    before_second = mx.addmm(constant[::2], before_first, linear[::2])
    return mx.stack([before_first, before_second], axis=1).flatten(0, 1)


def _linear_maps(keys: mx.array, keep: mx.array, erase: mx.array, batch: int, heads: int) -> mx.array:
    """What every chunk makes of the r unit rows when nothing is written: `[N, B, H, i, r, j]`."""
    rank, lanes = keys.shape[1:]
    images = mx.broadcast_to(mx.eye(rank)[:, :, None, None], (rank, rank, rank, lanes))
    for key, keep_t, erase_t in _tokens(keys[:, :, None, None], keep, erase):
        images = _erased(images, (images * key).sum(axis=0), key, keep_t, erase_t)
    return mx.contiguous(_rows(images, batch, heads))


def _states(states: mx.array, tokens: list[tuple[mx.array, ...]]) -> list[mx.array]:
    """The packed states `[j, i, M]` before each token and after the last."""
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
    """The packed arrays of one token after the other."""
    return list(zip(*([x.squeeze(0) for x in mx.split(array, len(array))] for array in packed), strict=True))


def _rows(packed: mx.array, batch: int, heads: int) -> mx.array:
    """Packed states `[j, n, i, M]` as rows `[N, B, H, i, n, j]`, for products with maps."""
    columns, count, rank, _ = packed.shape
    return packed.reshape(columns, count, rank, batch, heads, -1).transpose(5, 3, 4, 2, 1, 0)


def _lanes(rows: mx.array) -> mx.array:
    """The way back from `_rows` for single rows `[N, B, H, i, 1, j]`: `[j, i, M]`."""
    rank = rows.shape[-1]
    return rows.squeeze(-2).transpose(4, 3, 1, 2, 0).reshape(rank, rank, -1)
