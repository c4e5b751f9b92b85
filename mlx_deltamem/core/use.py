"""How calls of an attached model use the memory: read and write, or only read; write tokens or spans of tokens.

The functions `read_only`, `write_spans`, `write_mask`, `writing`, `using_spans`, `observing` and `memory_off` return
contexts for `with`. Within them, calls of the model from the same thread use the memory in another way. The contexts
nest.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.access import Access, both
from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.entry import MemoryEntry
from mlx_deltamem.core.spans import Ids, Spans, UnitSource


@dataclass(frozen=True)
class Attachment:
    """The description of the attached adapter that a model holds (`model.attachment`).

    Attributes:
        config: The adapter's configuration.
        paths: By layer index, the name of the attention module within the layer.
        metadata: Where the adapter comes from (`Adapter.metadata`).
        elsewhere: The tensors of layers that are in other processes of a pipeline, as in `Adapter.weights`.
    """

    config: DeltaMemConfig
    paths: dict[int, str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, mx.array] = field(default_factory=dict)


def attachment_of(model: nn.Module) -> Attachment:
    """Get the description of the adapter that is attached to a model.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment = getattr(model, "attachment", None)
    if not isinstance(attachment, Attachment):
        raise ValueError("the model has no adapter; call attach(model, adapter) first")
    return attachment


@contextmanager
def read_only(model: nn.Module) -> Iterator[None]:
    """A context in which calls of the model from this thread read the memory and do not write it.

    Raises:
        ValueError: The model has no adapter.
    """
    with _used(model, lambda use: replace(use, writing=False)):
        yield


@contextmanager
def write_spans(model: nn.Module, message_ids: Ids, sentence_ids: Ids | None = None) -> Iterator[None]:
    """A context in which message_mean and sentence_mean adapters write the mean of each span of tokens.

    All tokens of a call then read the state from before the call. Without this context, or if no token is in a span,
    these adapters write every token, as in the reference. Adapters that write tokens ignore the spans. The context
    applies to calls from this thread.

    Args:
        model: An attached model.
        message_ids, sentence_ids: `[B, T]` int, one id for each token of each call; -1 for a token in no span.

    Raises:
        ValueError: The model has no adapter, or the ids do not fit it. A call with tokens of another shape raises it
            too.
    """
    spans = Spans(message_ids, sentence_ids, attachment_of(model).config)
    with using_spans(model, spans):
        yield


@contextmanager
def write_mask(model: nn.Module, mask: mx.array) -> Iterator[None]:
    """A context in which calls of the model from this thread write only the tokens where the mask is True.

    All tokens read. Use it for a batch in which some rows only read, or for a text in which only some messages are
    written. A row that writes nothing keeps its state bit for bit. The spans of `write_spans` then contain only the
    tokens that are written.

    Args:
        model: An attached model.
        mask: bool; `[B, T]`, a value for each token of each call, or `[B, 1]`, a value for each row of every call.

    Raises:
        ValueError: The model has no adapter, or the mask is not an array or has another dtype or number of axes. A call
            with tokens of another shape raises it too.
    """
    if not isinstance(mask, mx.array):
        raise ValueError(f"write_mask got a {type(mask).__name__}; expected an array of MLX: mx.array(mask)")
    if mask.ndim != 2 or mask.dtype != mx.bool_:
        raise ValueError(f"write_mask got {mask.dtype} of shape {mask.shape}; expected bool, [B, T] or [B, 1]")
    # The caller may change its mask in place while the context lasts.
    own = mx.array(mask)
    with _used(model, lambda use: replace(use, written=own)):
        yield


def writing(model: nn.Module, written: bool | mx.array) -> AbstractContextManager[None]:
    """A context in which calls write all tokens, none, or those of a mask `[B, T]`, whatever the contexts around it."""
    mask = written if isinstance(written, mx.array) else None
    return _used(model, lambda use: replace(use, writing=written is not False, written=mask))


def using_spans(model: nn.Module, spans: UnitSource) -> AbstractContextManager[None]:
    """`write_spans` with a given source of units."""
    return _used(model, lambda use: replace(use, spans=spans))


def observing(model: nn.Module, observe: Observer | None) -> AbstractContextManager[None]:
    """A context in which calls report each layer to `observe`.

    `observe` gets the index of the layer, its reads, and its output before the correction `[B, T, hidden]`.
    """
    return _used(model, lambda use: replace(use, observe=observe))


def memory_off(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which calls run as the frozen model does, at its cost, and leave the memory as it is.

    With an empty memory, this gives the outputs of `read_only` bit for bit. `observing` reports nothing.
    """
    return _used(model, lambda use: replace(use, is_off=True))


def is_writing(model: nn.Module) -> bool:
    """Whether calls from this thread write the memory; they do not within `read_only`."""
    return current_use(model).writing


@dataclass(frozen=True)
class Use:
    """How calls use the memory.

    Attributes:
        writing: Whether they write it; False within `read_only`.
        spans: The units of `write_spans`; None: write single tokens.
        written: The mask of `write_mask`; None: write all tokens.
        observe: The function of `observing`; None: no reports.
        is_off: Whether calls run as the frozen model, within `memory_off`.
    """

    writing: bool = True
    spans: UnitSource | None = None
    written: mx.array | None = None
    observe: Observer | None = None
    is_off: bool = False

    def access(self, config: DeltaMemConfig, entry: MemoryEntry | None, batch: int, length: int) -> Access:
        """The access of `[batch, length]` tokens to the memory in an entry of a prompt cache.

        Raises:
            ValueError: The padding of the cache, the spans or the mask do not fit the tokens.
        """
        mask = None if entry is None else entry.make_mask(length)
        if mask is not None and mask.shape[0] != batch:
            raise ValueError(
                f"the prompt cache has padding for {mask.shape[0]} rows and the tokens have {batch} rows; "
                "expected the same number"
            )
        written = self._written(batch, length) if self.writing else None
        units = None
        if self.writing and self.spans is not None and config.memory_write_granularity != "token":
            units = self.spans.units(batch, length, both(mask, written))
        return Access(mask, self.writing, units, written)

    def _written(self, batch: int, length: int) -> mx.array | None:
        """The mask `[batch, length]` of the tokens that are written; None: all tokens."""
        if self.written is None:
            return None
        if self.written.shape not in ((batch, length), (batch, 1)):
            raise ValueError(
                f"write_mask got a mask of shape {self.written.shape} and the model tokens of shape {(batch, length)}; "
                "expected a value for each token of each call, or for each row"
            )
        return mx.broadcast_to(self.written, (batch, length))


# How this thread uses each attached model, by the identity of the model's attachment.
_USES: ContextVar[dict[int, Use] | None] = ContextVar("_USES", default=None)
# The use without any context.
PLAIN = Use()


def current_use(model: nn.Module) -> Use:
    """How calls of an attached model from this thread use the memory."""
    uses = _USES.get()
    return PLAIN if uses is None else uses.get(id(model.attachment), PLAIN)


@contextmanager
def _used(model: nn.Module, change: Callable[[Use], Use]) -> Iterator[None]:
    """A context in which this thread uses a model in a changed way."""
    attachment = attachment_of(model)
    uses = dict(_USES.get() or {})
    uses[id(attachment)] = change(current_use(model))
    token = _USES.set(uses)
    try:
        yield
    finally:
        _USES.reset(token)
