"""Give an mlx-lm model a memory, in place, and take it away again."""

import functools
import inspect
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.adapter import Adapter, check_weights, weight_key
from mlx_deltamem.core.attention import FORWARD_PASS, ForwardPass, delta_attention_class
from mlx_deltamem.core.cache import (
    MemoryLayout,
    PromptCache,
    make_backbone_cache,
    make_prompt_cache,
    split_memory,
)
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.initial import initial_parameters
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.shapes import frozen_projections, inactive_parameters
from mlx_deltamem.core.targets import Target, find_attention
from mlx_deltamem.core.use import PLAIN, Attachment, attachment_of, current_use


def attach_adapter(model: nn.Module, adapter: Adapter | DeltaMemConfig) -> list[str]:
    """Attach a δ-mem adapter to a model from `mlx_lm.load`, in place; `attach` finds the adapter by its name too.

    Args:
        model: The model; its own weights are neither changed nor copied.
        adapter: An adapter, or a configuration for a fresh, untrained adapter.

    Returns:
        The names of the attention layers that have a memory now.

    Raises:
        ValueError: The model has an adapter already, its attention is not supported, or the adapter does not fit; the
            message lists every problem, and the model is as it was.
    """
    check_detached(model)
    config = adapter if isinstance(adapter, DeltaMemConfig) else adapter.config
    targets = find_attention(model, config)
    if isinstance(adapter, Adapter):
        check_weights(adapter, {target.layer: target.shape for target in targets}, len(model.layers))
        weights = adapter.weights_by_layer()
    else:
        weights = {target.layer: _initial_weights(config, target) for target in targets}
    layout = _layout(model, config, targets)
    model_class = _delta_model_class(type(model))
    for target in targets:
        target.module.delta_mem = DeltaMemory(config, target.shape, weights[target.layer]).train(target.module.training)
        target.module.delta_layer = target.layer
        target.module.__class__ = delta_attention_class(target.module, target.module.delta_mem.corrected)
    model.memory_layout = layout
    metadata = adapter.metadata if isinstance(adapter, Adapter) else {}
    model.attachment = Attachment(config, {target.layer: target.path for target in targets}, metadata)
    model.__class__ = model_class
    return [target.name for target in targets]


def detach(model: nn.Module) -> None:
    """Take the adapter away: the model is the frozen backbone again, bit for bit.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment_of(model)
    for attention in attached_attention(model).values():
        del attention.delta_mem
        del attention.delta_layer
        vars(attention).pop("delta_plain", None)
        attention.__class__ = attention.frozen_class
    model.__class__ = model.memory_layout.frozen_class
    del model.memory_layout
    del model.attachment


def check_detached(model: nn.Module) -> None:
    """Raise ValueError if a model has an adapter."""
    if is_attached(model):
        raise ValueError("the model has an adapter already; call detach(model) first to attach another one")


def is_attached(model: nn.Module) -> bool:
    """Whether a model has an adapter."""
    return isinstance(model, DeltaModel)


def current_adapter(model: nn.Module) -> Adapter:
    """The adapter of a model as it is now, for instance after training.

    Heads that are not in use are in it too, as zeros, since the reference expects all of them.

    Raises:
        ValueError: The model has no adapter.
    """
    config, weights = attachment_of(model).config, {}
    for layer, attention in attached_attention(model).items():
        layer_memory: DeltaMemory = attention.delta_mem
        tensors = dict(layer_memory.items())
        for name in sorted(inactive_parameters(config)):
            width = layer_memory.shape.width(name.split("_")[1])
            tensors[name] = mx.zeros((width, config.width), layer_memory.memory_q_proj.dtype)
        path = model.attachment.paths[layer]
        weights |= {weight_key(layer, path, name): tensor for name, tensor in tensors.items()}
    repo = getattr(model, "backbone_repo", None)
    metadata = {} if repo is None else {"base_model": repo}
    return Adapter(config, weights, metadata | dict(model.attachment.metadata))


class DeltaModel:
    """The part of an attached model's class that is not mlx-lm's: its class becomes (DeltaModel, Original)."""

    def make_cache(self) -> PromptCache:
        """mlx-lm's way to ask a model for its prompt cache."""
        return make_prompt_cache(self)


@functools.cache
def _delta_model_class(frozen_class: type[nn.Module]) -> type[nn.Module]:
    call = _call_with_memory(frozen_class.__call__)
    return type(f"DeltaMem{frozen_class.__name__}", (DeltaModel, frozen_class), {"__call__": call})


def _call_with_memory(frozen_call: Callable) -> Callable:
    """The model's call, taking the memory out of the cache before and putting it back after."""
    names = list(inspect.signature(frozen_call).parameters)
    if "cache" not in names:
        raise ValueError(f"{frozen_call.__qualname__} takes {', '.join(names[1:])}; a memory needs a `cache` argument")
    # Without self, which Python has bound.
    position = names.index("cache") - 1

    @functools.wraps(frozen_call)
    def call(self: nn.Module, *args: object, **kwargs: object) -> mx.array:
        cache = args[position] if len(args) > position else kwargs.get("cache")
        if cache is None:
            entry, states = None, [mx.zeros((1, *shape)) for shape in self.memory_layout.shapes]
        else:
            backbone, entry = split_memory(cache, self.memory_layout)
            states = entry.cache
            if len(args) > position:
                args = (*args[:position], backbone, *args[position + 1 :])
            else:
                kwargs["cache"] = backbone
        use, config = current_use(self), self.attachment.config
        access = functools.partial(use.access, config, entry)
        forward = ForwardPass(states, access, use.observe, plain=entry is None and use is PLAIN)
        token = FORWARD_PASS.set(forward)
        try:
            output = frozen_call(self, *args, **kwargs)
        finally:
            FORWARD_PASS.reset(token)
        if missed := self.attachment.paths.keys() - forward.layers_run:
            raise ValueError(
                f"layers {sorted(missed)} of this model run in a way of their own, which a memory cannot follow"
            )
        if entry is not None:
            entry.cache = forward.states
            entry.advance(forward.length)
        if not config.delta_heads:
            # Nothing else would ever ask for these states, and every token would make the pending graph longer.
            output = mx.depends(output, forward.states)
        return output

    return call


def _initial_weights(config: DeltaMemConfig, target: Target) -> dict[str, mx.array]:
    slices = config.output_init.startswith("base_slice")
    frozen = frozen_projections(target.module, target.shape) if slices else {}
    weights = initial_parameters(config, target.shape, frozen)
    mx.eval(weights)
    return weights


def _layout(model: nn.Module, config: DeltaMemConfig, targets: list[Target]) -> MemoryLayout:
    shapes = [(0, 0, 0)] * len(model.layers)
    for target in targets:
        shapes[target.layer] = config.state_shape
    return MemoryLayout(type(model), shapes, len(make_backbone_cache(model, type(model))))


def attached_attention(model: nn.Module) -> dict[int, nn.Module]:
    """The attention modules that have a memory, by layer."""
    return {layer: dict(model.layers[layer].named_modules())[path] for layer, path in model.attachment.paths.items()}
