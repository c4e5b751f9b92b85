"""How an attached model uses its memory just now: written or only read, by token or by spans."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem.core.access import Access
from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.spans import Ids, Spans, UnitSource


@dataclass(frozen=True)
class Attachment:
    """What an attached model knows of its adapter (`model.attachment`).

    Attributes:
        config: The adapter's configuration.
        paths: By layer index, the name of the attention module within the layer.
        metadata: Where the adapter came from.
    """

    config: DeltaMemConfig
    paths: dict[int, str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def attachment_of(model: nn.Module) -> Attachment:
    """What an attached model knows of its adapter.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment = getattr(model, "attachment", None)
    if not isinstance(attachment, Attachment):
        raise ValueError("the model has no adapter; call attach(model, adapter) first")
    return attachment


@contextmanager
def read_only(model: nn.Module) -> Iterator[None]:
    """Within it, calls of the model from this thread read the memory and do not write it.

    Raises:
        ValueError: The model has no adapter.
    """
    with _used(model, writing=False):
        yield


@contextmanager
def write_spans(model: nn.Module, message_ids: Ids, sentence_ids: Ids | None = None) -> Iterator[None]:
    """Within it, message_mean and sentence_mean adapters write the mean of each span of tokens.

    All tokens of a call then read the state from before the call. Without spans, or where no token is in one, these
    adapters write token by token, as the reference does. Adapters that write tokens ignore the spans. It holds for
    calls from this thread.

    Args:
        model: An attached model.
        message_ids, sentence_ids: `[B, T]` int, one for each token of each call; -1 = no span.

    Raises:
        ValueError: The model has no adapter, or the ids do not fit it; when the model is called with tokens of another
            shape, the call raises it.
    """
    with _used(model, spans=Spans(message_ids, sentence_ids, attachment_of(model).config)):
        yield


@contextmanager
def write_mask(model: nn.Module, mask: mx.array) -> Iterator[None]:
    """Within it, calls of the model from this thread write only the tokens that the mask names; all tokens read.

    For a batch in which some rows only read, and for a text of which only some messages are written. A row that writes
    nothing keeps its state bit for bit. Units of `write_spans` are made of the tokens that are written.

    Args:
        model: An attached model.
        mask: bool, `[B, T]`, one for each token of each call; or `[B, 1]`, one for each row of every call.

    Raises:
        ValueError: The model has no adapter, or the mask is no such array; when the model is called with tokens that
            it does not fit, the call raises it.
    """
    if mask.ndim != 2 or mask.dtype != mx.bool_:
        raise ValueError(f"write_mask got {mask.dtype} of shape {mask.shape}; expected bool, [B, T] or [B, 1]")
    with _used(model, written=mask):
        yield


def writing(model: nn.Module, written: bool | mx.array) -> AbstractContextManager[None]:
    """Within it, calls write all tokens, none, or those that a mask `[B, T]` names, whatever holds around it."""
    mask = written if isinstance(written, mx.array) else None
    return _used(model, writing=written is not False, written=mask)


def using_spans(model: nn.Module, spans: UnitSource) -> AbstractContextManager[None]:
    """`write_spans` with units that are there already."""
    return _used(model, spans=spans)


def observing(model: nn.Module, observe: Observer | None) -> AbstractContextManager[None]:
    """Within it, `observe` is told of each layer that ran: its index, what its tokens read, and its output before the
    correction, `[B, T, hidden]`."""
    return _used(model, observe=observe)


def is_writing(model: nn.Module) -> bool:
    """Whether calls from this thread write the memory: False within `read_only`."""
    return current_use(model).writing


@dataclass(frozen=True)
class Use:
    """How calls use the memory.

    Attributes:
        writing: False within `read_only`.
        spans: What `write_spans` was given.
        written: What `write_mask` was given.
        observe: Told of each layer that ran, as `observing` says.
    """

    writing: bool = True
    spans: UnitSource | None = None
    written: mx.array | None = None
    observe: Observer | None = None

    def access(self, config: DeltaMemConfig, entry: ArraysCache | None, batch: int, length: int) -> Access:
        """What `[batch, length]` tokens may do with the memory in a cache entry."""
        mask = None if entry is None else entry.make_mask(length)
        if mask is not None and mask.shape[0] != batch:
            raise ValueError(f"the cache was made for {mask.shape[0]} rows, the tokens are of {batch}")
        written = self._written(batch, length) if self.writing else None
        units = None
        if self.writing and self.spans is not None and config.memory_write_granularity != "token":
            units = self.spans.units(batch, length, _both(mask, written))
        return Access(mask, self.writing, units, written)

    def _written(self, batch: int, length: int) -> mx.array | None:
        """The mask `[batch, length]` of the tokens that are written; None: all are."""
        if self.written is None:
            return None
        if self.written.shape not in ((batch, length), (batch, 1)):
            raise ValueError(
                f"write_mask got a mask of shape {self.written.shape} and the model tokens of shape {(batch, length)}; "
                "expected one for each token of each call, or one for each row"
            )
        return mx.broadcast_to(self.written, (batch, length))


def _both(one: mx.array | None, other: mx.array | None) -> mx.array | None:
    """Where two masks are both True; None is True everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


# How this thread uses each attached model just now, by the identity of its attachment.
_USES: ContextVar[dict[int, Use] | None] = ContextVar("_USES", default=None)
PLAIN = Use()


def current_use(model: nn.Module) -> Use:
    uses = _USES.get()
    return PLAIN if uses is None else uses.get(id(model.attachment), PLAIN)


@contextmanager
def _used(model: nn.Module, **changes: object) -> Iterator[None]:
    attachment_of(model)
    uses = dict(_USES.get() or {})
    uses[id(model.attachment)] = replace(current_use(model), **changes)
    token = _USES.set(uses)
    try:
        yield
    finally:
        _USES.reset(token)
