"""Attach a δ-mem adapter to an mlx-lm model, in place, and detach it."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.adapter import Adapter, check_weights, weight_key
from mlx_deltamem.core.attention import FORWARD_PASS, DeltaAttention, ForwardPass, delta_attention_class
from mlx_deltamem.core.cache import (
    MemoryLayout,
    PromptCache,
    make_backbone_cache,
    make_prompt_cache,
    split_memory,
)
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.entry import MemoryEntry
from mlx_deltamem.core.initial import initial_parameters
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.shapes import frozen_projections, inactive_parameters
from mlx_deltamem.core.targets import Target, find_attention
from mlx_deltamem.core.use import PLAIN, Attachment, attachment_of, current_use


def attach_adapter(model: nn.Module, adapter: Adapter | DeltaMemConfig) -> list[str]:
    """Attach a δ-mem adapter to a model from `mlx_lm.load`, in place.

    `mlx_deltamem.attach` does the same and also accepts the name of an adapter.

    Args:
        model: The model. Its own weights are neither changed nor copied.
        adapter: An adapter, or the configuration of a new, untrained adapter.

    Returns:
        The names of the attention layers that get a memory.

    Raises:
        ValueError: The model has an adapter already, its attention is not supported, or the adapter does not fit. The
            message lists all problems, and the model is unchanged.
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
        _change_class(target.module, delta_attention_class(target.module, target.module.delta_mem.corrected))
    model.memory_layout = layout
    metadata = adapter.metadata if isinstance(adapter, Adapter) else {}
    model.attachment = Attachment(config, {target.layer: target.path for target in targets}, metadata)
    _change_class(model, model_class)
    return [target.name for target in targets]


def detach(model: nn.Module) -> None:
    """Remove the adapter from a model, in place. The model is then the frozen backbone again, bit for bit.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment_of(model)
    for attention in attached_attention(model).values():
        del attention.delta_mem
        del attention.delta_layer
        vars(attention).pop("delta_plain", None)
        _change_class(attention, attention.frozen_class)
    _change_class(model, model.memory_layout.frozen_class)
    del model.memory_layout
    del model.attachment


def check_detached(model: nn.Module) -> None:
    """Check that a model has no adapter.

    Raises:
        ValueError: The model has an adapter.
    """
    if is_attached(model):
        raise ValueError("the model has an adapter already; call detach(model) first to attach another one")


def is_attached(model: nn.Module) -> "TypeGuard[DeltaModel]":
    """Whether a model has an adapter."""
    return isinstance(model, DeltaModel)


def current_adapter(model: nn.Module) -> Adapter:
    """Get the adapter of a model with its present weights, for instance after training.

    It includes the correction heads that are not in use, as zeros, because the reference expects all heads.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment = attachment_of(model)
    config = attachment.config
    weights: dict[str, mx.array] = {}
    for layer, attention in attached_attention(model).items():
        layer_memory = attention.delta_mem
        tensors: dict[str, mx.array] = dict(layer_memory.items())
        for name in sorted(inactive_parameters(config)):
            width = layer_memory.shape.width(name.split("_")[1])
            tensors[name] = mx.zeros((width, config.width), layer_memory.memory_q_proj.dtype)
        path = attachment.paths[layer]
        weights |= {weight_key(layer, path, name): tensor for name, tensor in tensors.items()}
    repo = getattr(model, "backbone_repo", None)
    metadata = {} if repo is None else {"base_model": repo}
    return Adapter(config, weights, metadata | dict(attachment.metadata))


class DeltaModel(nn.Module):
    """The part of the class of an attached model that does not come from mlx-lm.

    The class of the model becomes a subclass of (DeltaModel, Original).
    """

    memory_layout: MemoryLayout
    attachment: Attachment

    def make_cache(self) -> PromptCache:
        """Make a prompt cache with an empty memory; mlx-lm calls this method."""
        return make_prompt_cache(self)


@functools.cache
def _delta_model_class(frozen_class: type[nn.Module]) -> type[nn.Module]:
    call = _call_with_memory(frozen_class.__call__)
    return type(f"DeltaMem{frozen_class.__name__}", (DeltaModel, frozen_class), {"__call__": call})


def _call_with_memory(frozen_call: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The call of a model, with the memory taken out of the prompt cache before it and put back after it."""
    names = list(inspect.signature(frozen_call).parameters)
    if "cache" not in names:
        raise ValueError(
            f"{frozen_call.__qualname__} has the arguments {', '.join(names[1:])}; a memory needs an argument `cache`"
        )
    # The position among the arguments without `self`.
    position = names.index("cache") - 1

    # The arguments are those of the original call, which differ from model to model.
    @functools.wraps(frozen_call)
    def call(self: DeltaModel, *args: Any, **kwargs: Any) -> mx.array:
        cache: PromptCache | None = args[position] if len(args) > position else kwargs.get("cache")
        entry: MemoryEntry | None = None
        backbone: PromptCache | None = None
        if cache is None:
            states = [mx.zeros((1, *shape)) for shape in self.memory_layout.shapes]
        else:
            backbone, entry = split_memory(cache, self.memory_layout)
            entry.begin(backbone)
            states = entry.cache
            if len(args) > position:
                args = (*args[:position], backbone, *args[position + 1 :])
            else:
                kwargs["cache"] = backbone
        use, config = current_use(self), self.attachment.config
        access = functools.partial(use.access, config, entry)
        forward = ForwardPass(states, access, use.observe, plain=entry is None and use is PLAIN, is_off=use.is_off)
        token = FORWARD_PASS.set(forward)
        try:
            output = frozen_call(self, *args, **kwargs)
        finally:
            FORWARD_PASS.reset(token)
        if missed := self.attachment.paths.keys() - forward.layers_run:
            raise ValueError(
                f"this model did not call the attention modules of layers {sorted(missed)}, which have a memory; use "
                "an adapter whose target_layers leave them out"
            )
        if entry is not None:
            shape = forward.batch, forward.length
            if joined := entry.end(forward.states, shape, forward.layer_passes, backbone):
                output = mx.depends(output, joined)
        if not config.delta_heads:
            # The output does not depend on the states. Without this, MLX would not evaluate them with the output, and
            # their graph would grow with every token.
            output = mx.depends(output, forward.states)
        return output

    return call


def _initial_weights(config: DeltaMemConfig, target: Target) -> dict[str, mx.array]:
    slices = config.output_init.startswith("base_slice")
    frozen = frozen_projections(target.module, target.shape) if slices else {}
    weights = initial_parameters(config, target.shape, frozen)
    mx.eval(weights)
    return weights


def _change_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    """Make a module an instance of another class, in place: its parameters and attributes stay."""
    module.__class__ = new_class


def _layout(model: nn.Module, config: DeltaMemConfig, targets: Sequence[Target]) -> MemoryLayout:
    shapes = [(0, 0, 0)] * len(model.layers)
    for target in targets:
        shapes[target.layer] = config.state_shape
    return MemoryLayout(type(model), shapes, len(make_backbone_cache(model, type(model))))


def attached_attention(model: nn.Module) -> dict[int, DeltaAttention]:
    """Get the attention modules that have a memory, by layer index."""
    return {layer: dict(model.layers[layer].named_modules())[path] for layer, path in model.attachment.paths.items()}
