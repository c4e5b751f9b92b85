"""The recurrence of δ-mem: a state read and then written by the delta rule, token after token.

For each token, with `S` the state of one head (row = value, column = key) and gates that act on rows:

    read = S q
    S    = keep * S - erase * (S k) kᵀ + write * v kᵀ

(arXiv 2605.12357, section 3; facts of the reference: the read comes before the token's own write.)
"""

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_deltamem.history_scan import history_scan, supports
from mlx_deltamem.kernels.build import on_gpu
from mlx_deltamem.kernels.trial import trial

# Above this many numbers per chunk the affine maps of the chunked form cost more than the steps they save.
_LARGEST_MAP = 40_000
# Below this many tokens one plain step after the other is as fast.
_FEWEST_TOKENS = 16


def delta_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Read and write the states of a batch of sequences; differentiable in every float argument.

    Args:
        state: `[B, H, r, r]`, the states before the first token (row = value, column = key).
        q, k, v: `[B, T, H, r]`, memory queries, keys and values.
        keep, erase, write: Gates, `[B, T, H, r]` or anything that broadcasts to it; `keep` may be 0.
        mask: `[B, T]` bool; a token that is False reads 0 and writes nothing. Default: all True.

    Returns:
        The reads `[B, T, H, r]` and the states after the last token `[B, H, r, r]`, float32 whatever the inputs are.

    Raises:
        ValueError: The shapes do not fit together.
    """
    state, tokens = _prepare(state, (q, k, v, keep, erase, write), mask)
    queries, keys, values, keep, erase, write = tokens
    length = keys.shape[1]
    if length == 0:
        return queries, state
    written = write * values
    if length == 1:
        read, state = _step(state, *(x[:, 0] for x in (queries, keys, written, keep, erase)))
        return read[:, None], state
    if on_gpu() and _has_kernel(keys.shape[-1]):
        reads, state, _ = history_scan(state, queries, keys, written, keep, erase)
        return reads, state
    chunk = _chunk_length(keys.shape)
    packed = [
        _pack(x, chunk, fill) for x, fill in zip((queries, keys, written, keep, erase), (0, 0, 0, 1, 0), strict=True)
    ]
    reads, state, _ = _packed_scan(state, *packed)
    return _unpack(reads, keys.shape), state


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
    """`delta_scan` as it is defined, one token after the other: the yardstick for every faster form."""
    state, tokens = _prepare(state, (q, k, v, keep, erase, write), mask)
    reads = [mx.zeros_like(tokens[0][:, :0])]
    for t in range(tokens[0].shape[1]):
        query, key, value, keep_t, erase_t, write_t = (x[:, t] for x in tokens)
        read, state = _step(state, query, key, write_t * value, keep_t, erase_t)
        reads.append(read[:, None])
    return mx.concatenate(reads, axis=1), state


@functools.cache
def _has_kernel(rank: int) -> bool:
    """Whether the fused scan can be used for states of this rank; a warning says if it cannot where it should."""
    keys = mx.random.split(mx.random.key(0), 6)
    state = mx.random.normal((1, 1, rank, rank), key=keys[0])
    tokens = [mx.random.uniform(shape=(1, 3, 1, rank), key=key) / math.sqrt(rank) for key in keys[1:]]

    def with_gradients(scan: Callable[..., Sequence[mx.array]]) -> list[mx.array]:
        outputs, gradients = mx.vjp(lambda *arrays: scan(*arrays)[:2], [state, *tokens], [tokens[0], state])
        return outputs + gradients

    def by_definition(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        return delta_scan_reference(*arrays, mx.ones_like(tokens[0]))

    return supports(rank) and trial.passes(
        lambda: with_gradients(history_scan), lambda: with_gradients(by_definition), tolerance=1e-3
    )


def _prepare(
    state: mx.array, tokens: tuple[mx.array, ...], mask: mx.array | None
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Check the shapes, make everything float32, and turn masked tokens into ones that do nothing."""
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


def _step(
    state: mx.array, query: mx.array, key: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """One token: `state` `[B, H, r, r]`, the rest `[B, H, r]`."""
    row_key = key[..., None, :]
    read = (state * query[..., None, :]).sum(axis=-1)
    recalled = (state * row_key).sum(axis=-1)
    state = keep[..., None] * state + (written - erase * recalled)[..., None] * row_key
    return read, state


# The chunked form. T tokens are cut into N chunks of C, and the chunks become one more batch axis: the recurrence runs
# C steps on the unit rows and the zero row, which gives the affine map of every chunk; N small steps over these maps
# give the state at the start of every chunk; C more steps on those give the state before every token. That is 2C + N
# steps instead of C * N, made of products of `keep` only, so that `keep` may be 0.
#
# Arrays are packed as [C, r, M] with M = B * H * N last: the batch is the long axis, and tiny r x r blocks are not.


def _chunk_length(shape: tuple[int, ...]) -> int:
    batch, length, heads, rank = shape
    if length < _FEWEST_TOKENS or batch * heads * rank**3 > _LARGEST_MAP:
        return length
    return 2 ** round(math.log2(math.sqrt(length / 2)))


def _pack(x: mx.array, chunk: int, fill: float) -> mx.array:
    """`[B, T, H, r]` to `[C, r, B * H * N]`, the last chunk filled up with tokens that do nothing."""
    batch, length, heads, rank = x.shape
    missing = -length % chunk
    if missing:
        x = mx.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=fill)
    x = x.reshape(batch, -1, chunk, heads, rank)
    return mx.contiguous(x.transpose(2, 4, 0, 3, 1)).reshape(chunk, rank, -1)


def _unpack(x: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The way back from `_pack` to `[B, T, H, r]`."""
    batch, length, heads, rank = shape
    x = x.reshape(x.shape[0], rank, batch, heads, -1).transpose(2, 4, 0, 3, 1)
    return x.reshape(batch, -1, heads, rank)[:, :length]


@mx.custom_function
def _packed_scan(
    state: mx.array, queries: mx.array, keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Reads `[C, r, M]`, the final state, and the state before every token, `[C, j, i, M]`, for the gradient."""
    history, state = _history(state, keys, keys, written, keep, erase)
    return (history * queries[:, :, None]).sum(axis=1), state, history


@_packed_scan.vjp
def _packed_scan_vjp(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """The gradient G of the state obeys the recurrence run backwards, with the query as the key that is written:

    G before = keep * G after - erase * (G k) kᵀ + (gradient of the read) qᵀ
    """
    state, queries, keys, written, keep, erase = primals
    read_gradient, final_gradient, _ = cotangents
    _, _, history = outputs
    batch_heads = state.shape[0] * state.shape[1]
    backwards = [_reverse(x, batch_heads) for x in (keys, queries, read_gradient, keep, erase)]
    gradient, state_gradient = _history(final_gradient, *backwards)
    gradient = _reverse(gradient, batch_heads)
    columns = keys[:, :, None]
    gradient_key = (gradient * columns).sum(axis=1)
    recalled = (history * columns).sum(axis=1)
    key_gradient = gradient * (written - erase * recalled)[:, None] - history * (erase * gradient_key)[:, None]
    return (
        state_gradient,
        (history * read_gradient[:, None]).sum(axis=2),
        key_gradient.sum(axis=2),
        gradient_key,
        (gradient * history).sum(axis=1),
        -recalled * gradient_key,
    )


def _reverse(x: mx.array, batch_heads: int) -> mx.array:
    """Turn a packed array around in time."""
    shape = x.shape
    return x.reshape(*shape[:-1], batch_heads, -1)[::-1, ..., ::-1].reshape(shape)


def _history(
    state: mx.array, keys: mx.array, write_keys: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> tuple[mx.array, mx.array]:
    """The state before every token `[C, j, i, M]` (j = column, i = row) and the state after the last `[B, H, r, r]`.

    The packed arrays are `[C, r, M]`; `write_keys` are the keys written, `keys` those erased.
    """
    batch, heads, rank, _ = state.shape
    chunk, _, lanes = keys.shape
    chunks = lanes // (batch * heads)
    tokens = [(keys[t], write_keys[t], written[t], keep[t], erase[t]) for t in range(chunk)]
    starts, final = state[:, :, None], None
    if chunks > 1:
        starts, final = _chunk_starts(state, _chunk_maps(tokens, rank).reshape(rank, rank + 1, rank, batch, heads, -1))
    current = starts.transpose(4, 3, 0, 1, 2).reshape(rank, rank, lanes)
    history = []
    for token in tokens:
        history.append(current)
        current = _packed_step(current, *token)
    if final is None:
        final = current.reshape(rank, rank, batch, heads).transpose(2, 3, 1, 0)
    return mx.stack(history), final


def _chunk_maps(tokens: list[tuple[mx.array, ...]], rank: int) -> mx.array:
    """Every chunk's affine map of a state row: images `[j, r + 1, i, M]` of the r unit rows and of the zero row."""
    lanes = tokens[0][0].shape[-1]
    unit_rows = mx.eye(rank, rank + 1)[:, :, None, None]
    only_zero_row = mx.concatenate([mx.zeros(rank), mx.ones(1)])[:, None, None]
    images = mx.broadcast_to(unit_rows, (rank, rank + 1, rank, lanes))
    for key, write_key, written, keep, erase in tokens:
        images = _packed_step(images, key[:, None], write_key[:, None], only_zero_row * written, keep, erase)
    return images


def _chunk_starts(state: mx.array, maps: mx.array) -> tuple[mx.array, mx.array]:
    """The states before every chunk `[B, H, N, r, r]` and after the last, from `maps` `[j, r + 1, i, B, H, N]`."""
    maps = mx.contiguous(maps.transpose(3, 4, 5, 2, 1, 0))
    linear, constant = maps[..., :-1, :], maps[..., -1, :]
    starts = []
    for n in range(maps.shape[2]):
        starts.append(state)
        state = (state[..., None, :] @ linear[:, :, n]).squeeze(-2) + constant[:, :, n]
    return mx.stack(starts, axis=2), state


def _packed_step(
    states: mx.array, key: mx.array, write_key: mx.array, written: mx.array, keep: mx.array, erase: mx.array
) -> mx.array:
    """One token on packed states `[j, ..., i, M]`; keys `[j, ..., M]`, gates `[..., i, M]`."""
    key, write_key = mx.expand_dims(key, -2), mx.expand_dims(write_key, -2)
    recalled = (states * key).sum(axis=0)
    return _updated(states, keep, erase * recalled, key, written, write_key)


@mx.compile
def _updated(
    states: mx.array, keep: mx.array, erased: mx.array, key: mx.array, written: mx.array, write_key: mx.array
) -> mx.array:
    return keep * states - erased * key + written * write_key
