"""The write pass of training: a history is read into a memory, a long one in segments (facts 3.3)."""

from collections.abc import Sequence
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.access import WriteUnits
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of, current_use, is_writing, observing, using_spans, write_mask
from mlx_deltamem.training.segments.cache import make_write_cache
from mlx_deltamem.training.segments.layer_calls import running_layers
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
    """Read histories from a memory, with writes, and give the states they leave; keys and values are dropped.

    It is for a loss: gradients go through the whole pass, also under `mx.compile`. With `segment`, the model reads so
    many tokens at a time, and of each layer and segment only what goes into it is kept for the gradient; the rest is
    computed again. States and gradients are those of the pass in one piece, to rounding. The last layer that has a
    memory is run for its memory alone, later ones and the head not at all. Whoever is `observing` is told of each layer
    once, of all tokens.

    Args:
        model: An attached model; as after `model.train()`, where gradients are taken.
        ids: `[B, T]` int, padded at the right.
        lengths: `[B]` int, the tokens of each row that are no padding; the others neither read nor write.
        units: For adapters that write means: `[B, U, T]` float32, the share of each token in each unit, in the order of
            writing; a row of zeros is no unit. None: they write token by token. Others ignore it.
        segment: Tokens per segment; None: keep everything for the gradient.
        written: `[B, T]` bool, the tokens that are written; the others only read. None: all. It says nothing of units.
        states: The states to begin from, as returned; None: an empty memory.

    Returns:
        By layer, `[B, H, r, r]` float32; `[B, 0, 0, 0]` for a layer without a memory.

    Raises:
        ValueError: The model has no adapter or is only read now, the shapes do not fit together, or the model has
            a cache that cannot be cut into segments.
    """
    attachment_of(model)
    _check(model, ids, lengths, units, segment)
    _check_written(ids, written)
    cache = make_write_cache(model, in_segments=segment is not None)
    shapes = model.memory_layout.shapes
    entry = ArraysCache(len(shapes))
    if states is None:
        # One array for all layers of a shape: MLX 0.32 fails to compile a gradient beside two equal results.
        empty = {shape: mx.zeros((ids.shape[0], *shape)) for shape in shapes}
        states = [empty[shape] for shape in shapes]
    entry.cache = list(states)
    with nullcontext() if units is None else using_spans(model, _RunningUnits(units)):
        if segment is not None:
            _read_in_segments(model, ids, lengths, [*cache, entry], segment, written)
        elif ids.shape[1]:
            _read(model, ids, lengths, [*cache, entry], written)
    return entry.cache


def _read(
    model: nn.Module, ids: mx.array, lengths: mx.array, cache: PromptCache, written: mx.array | None = None
) -> None:
    # A new array, since the model counts it down in place.
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
    # Of the last one only its memory is ever run, which is little to keep.
    checkpointed = model.layers[: max(model.attachment.paths)]
    with running_layers(checkpointed, layers), observing(model, None if notes is None else notes.layer_ran):
        for begin in range(0, ids.shape[1], segment):
            part = ids[:, begin : begin + segment]
            layers.tokens = part.shape
            flags = None if written is None else written[:, begin : begin + segment]
            _read(model, part, lengths - begin, cache, flags)
    if notes is not None:
        notes.tell(observe, model)


class _RunningUnits:
    """The units of a pass that may be run in several calls (a `UnitSource`).

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
    """What was seen of each layer in each segment, for someone who observes the pass."""

    def __init__(self):
        self._segments: dict[int, list[list[mx.array]]] = {}

    def add(self, layer: int, arrays: list[mx.array]) -> None:
        self._segments.setdefault(layer, []).append(arrays)

    def layer_ran(self, layer: int, reads: Reads, output: mx.array) -> None:
        """An `Observer`."""
        self.add(layer, [*reads.arrays(), output])

    def tell(self, observe: Observer, model: nn.Module) -> None:
        """Tell of each layer as if all tokens had been read at once."""
        for layer, attention in attached_attention(model).items():
            segments = self._segments.get(layer)
            if segments:
                *reads, output = (mx.concatenate(parts, axis=1) for parts in zip(*segments, strict=True))
                weights = attention.delta_mem.packed_weights(output.dtype)
                observe(layer, Reads.from_arrays(reads, weights), output)


def _check_written(ids: mx.array, written: mx.array | None) -> None:
    if written is not None and (written.shape != ids.shape or written.dtype != mx.bool_):
        raise ValueError(
            f"what is written of the history is {written.dtype} of shape {written.shape}; expected bool, {ids.shape}"
        )


def _check(model: nn.Module, ids: mx.array, lengths: mx.array, units: mx.array | None, segment: int | None) -> None:
    if not is_writing(model):
        raise ValueError("a history is written while the model is only read; leave read_only(model) for it")
    batch, length = ids.shape if ids.ndim == 2 else (0, 0)
    if not batch:
        raise ValueError(f"the history's ids have shape {ids.shape}; expected [B, T]")
    if lengths.shape != (batch,):
        raise ValueError(f"the history's lengths have shape {lengths.shape}; expected one for each of {batch} rows")
    if units is not None and (units.ndim != 3 or units.shape[::2] != (batch, length) or not units.shape[1]):
        raise ValueError(f"the history's units have shape {units.shape}; expected {(batch, 'U', length)}")
    if segment is not None and segment < 1:
        raise ValueError(f"the segment is {segment} tokens; expected 1 or more, or None")
