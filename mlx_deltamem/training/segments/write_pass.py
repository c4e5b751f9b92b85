"""The write pass of training: reads histories into the memory, long ones in segments (facts 3.3)."""

from collections.abc import Sequence
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem.core.access import WriteUnits
from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of, current_use, is_writing, observing, using_spans, write_mask
from mlx_deltamem.training.segments.cache import make_write_cache
from mlx_deltamem.training.segments.diverted import running_layers
from mlx_deltamem.training.segments.layers import CheckpointedLayers


def write_states(
    model: nn.Module,
    ids: mx.array,
    lengths: mx.array,
    units: mx.array | None = None,
    segment: int | None = None,
    written: mx.array | None = None,
    states: Sequence[mx.array] | None = None,
) -> list[mx.array]:
    """Read histories with writes and return the resulting states; keys and values are dropped.

    Gradients flow through the whole pass, also under `mx.compile`. With `segment`, the model reads that many tokens at
    a time, and only the inputs of each layer and segment are kept for the gradient; the rest is computed again. States
    and gradients equal those of the pass in one piece, up to rounding. Of the last layer with a memory only the memory
    is run; later layers and the head are not run. An observer (`observing`) is called once for each layer, with all
    tokens.

    Args:
        model: An attached model, in training mode (`model.train()`) if gradients are computed.
        ids: `[B, T]` int, padded at the right.
        lengths: `[B]` int, the number of tokens of each row without padding. Padding neither reads nor writes.
        units: `[B, U, T]` float32, the share of each token in each unit, in the order of writing, for adapters that
            write means. A row of zeros is padding. None: such an adapter writes token by token. Others ignore it.
        segment: The number of tokens in a segment; None: keep all activations for the gradient.
        written: `[B, T]` bool, True for tokens to write; None: all. It does not apply to units.
        states: The states to begin with, in the form of the result; None: an empty memory.

    Returns:
        The states by layer, `[B, H, r, r]` float32; `[B, 0, 0, 0]` for a layer without a memory.

    Raises:
        ValueError: The model has no adapter or is read only, the shapes do not fit together, or a cache of the model
            cannot be cut into segments.
    """
    attachment_of(model)
    _check(model, ids, lengths, units, segment)
    _check_written(ids, written)
    cache = make_write_cache(model, in_segments=segment is not None)
    shapes = model.memory_layout.shapes
    entry = ArraysCache(len(shapes))
    if states is None:
        # Layers of one shape share an array: MLX 0.32 fails to compile a gradient beside two equal results.
        empty = {shape: mx.zeros((ids.shape[0], *shape)) for shape in shapes}
        states = [empty[shape] for shape in shapes]
    for layer, state in enumerate(states):
        entry[layer] = state
    with nullcontext() if units is None else using_spans(model, _RunningUnits(units)):
        if segment is not None:
            _read_in_segments(model, ids, lengths, [*cache, entry], segment, written)
        elif ids.shape[1]:
            _read(model, ids, lengths, [*cache, entry], written)
    return [entry[layer] for layer in range(len(shapes))]


def _read(
    model: nn.Module, ids: mx.array, lengths: mx.array, cache: PromptCache, written: mx.array | None = None
) -> None:
    # A copy, since the model changes the array in place.
    cache[-1].lengths = lengths + 0
    with nullcontext() if written is None else write_mask(model, written):
        model(ids, cache=cache)


def _read_in_segments(
    model: nn.Module,
    ids: mx.array,
    lengths: mx.array,
    cache: PromptCache,
    segment: int,
    written: mx.array | None,
) -> None:
    observe = current_use(model).observe
    notes = None if observe is None else _Notes()
    layers = CheckpointedLayers(model, None if notes is None else notes.add)
    # Not the last layer: only its memory is run, whose activations are small.
    checkpointed = model.layers[: max(model.attachment.paths)]
    with running_layers(checkpointed, layers), observing(model, None if notes is None else notes.layer_ran):
        for begin in range(0, ids.shape[1], segment):
            part = ids[:, begin : begin + segment]
            layers.tokens = ids.shape[0], part.shape[1]
            flags = None if written is None else written[:, begin : begin + segment]
            _read(model, part, lengths - begin, cache, flags)
    if notes is not None and observe is not None:
        notes.call(observe, model)


class _RunningUnits:
    """The units of a pass that may consist of several calls, as a `UnitSource`.

    Args:
        shares: `[B, U, T]` float32, the share of each token in each unit.
    """

    def __init__(self, shares: mx.array):
        self._shares = shares
        self._done = 0
        self._carried: dict[int, mx.array] = {}

    def units(self, batch: int, length: int, mask: mx.array | None) -> WriteUnits:
        begin, self._done = self._done, self._done + length
        complete = self._done == self._shares.shape[2]
        part = self._shares[:, :, begin : self._done]
        return WriteUnits(part, self._shares.any(axis=-1), self._carried, complete)


class _Notes:
    """Collects the arrays of each layer and segment for an observer of the pass."""

    def __init__(self):
        self._segments: dict[int, list[list[mx.array]]] = {}

    def add(self, layer: int, arrays: list[mx.array]) -> None:
        self._segments.setdefault(layer, []).append(arrays)

    def layer_ran(self, layer: int, reads: Reads, output: mx.array) -> None:
        """Add the arrays of a layer. It is an `Observer`."""
        self.add(layer, [*reads.arrays(), output])

    def call(self, observe: Observer, model: nn.Module) -> None:
        """Call an observer once for each layer, with the arrays of all segments joined."""
        for layer, attention in attached_attention(model).items():
            segments = self._segments.get(layer)
            if segments:
                *reads, output = (mx.concatenate(list(parts), axis=1) for parts in zip(*segments, strict=True))
                weights = attention.delta_mem.packed_weights(output.dtype)
                observe(layer, Reads.from_arrays(reads, weights), output)


def _check_written(ids: mx.array, written: mx.array | None) -> None:
    if written is not None and (written.shape != ids.shape or written.dtype != mx.bool_):
        raise ValueError(
            f"the history's written mask is {written.dtype} of shape {written.shape}; expected bool, {ids.shape}"
        )


def _check(model: nn.Module, ids: mx.array, lengths: mx.array, units: mx.array | None, segment: int | None) -> None:
    if not is_writing(model):
        raise ValueError("the model is read only, and a history must be written; call this outside of read_only(model)")
    batch, length = ids.shape if ids.ndim == 2 else (0, 0)
    if not batch:
        raise ValueError(f"the history's ids have shape {ids.shape}; expected [B, T]")
    if lengths.shape != (batch,):
        raise ValueError(f"the history's lengths have shape {lengths.shape}; expected one for each of {batch} rows")
    if units is not None and (units.ndim != 3 or units.shape[::2] != (batch, length) or not units.shape[1]):
        raise ValueError(f"the history's units have shape {units.shape}; expected {(batch, 'U', length)}")
    if segment is not None and segment < 1:
        raise ValueError(f"the segment is {segment} tokens; expected 1 or more, or None")
