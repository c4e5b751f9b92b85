"""Attach a δ-mem adapter to an mlx-lm model, in place, and detach it."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.adapter import Adapter, check_weights, shape_of, weight_key
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
from mlx_deltamem.core.fields import HEADS
from mlx_deltamem.core.initial import initial_parameters
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.shapes import AttentionShape, frozen_projections, inactive_parameters
from mlx_deltamem.core.spread import all_layers, held_layers
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
        ValueError: The model has an adapter already, its attention is not supported, or the adapter is no adapter or
            does not fit. The message lists all problems, and the model is unchanged.
    """
    check_detached(model)
    if not isinstance(adapter, Adapter | DeltaMemConfig):
        raise ValueError(
            f"the adapter is a {type(adapter).__name__}; expected the name of a folder or a Hub repo, an Adapter, or a "
            "DeltaMemConfig for a new one"
        )
    config = adapter if isinstance(adapter, DeltaMemConfig) else adapter.config
    targets = find_attention(model, config)
    elsewhere: dict[str, mx.array] = {}
    if isinstance(adapter, Adapter):
        elsewhere = _check_and_part(model, adapter, targets)
        weights = adapter.weights_by_layer()
    elif len(held_layers(model)) < len(all_layers(model)):
        raise ValueError(
            "the model is in a pipeline; expected an adapter from a file, because a new one needs it whole"
        )
    else:
        weights = {target.layer: _initial_weights(config, target) for target in targets}
    layout = _layout(model, config, targets, weights.keys() - {target.layer for target in targets})
    model_class = _delta_model_class(type(model))
    for target in targets:
        target.module.delta_mem = DeltaMemory(config, target.shape, weights[target.layer]).train(target.module.training)
        target.module.delta_layer = target.layer
        _change_class(target.module, delta_attention_class(target.module, target.module.delta_mem.corrected))
    # Arrays that are not computed belong to this thread. A server uses the model in another one.
    mx.eval([target.module.delta_mem.parameters() for target in targets], elsewhere)
    model.memory_layout = layout
    metadata = adapter.metadata if isinstance(adapter, Adapter) else {}
    model.attachment = Attachment(config, {target.layer: target.path for target in targets}, metadata, elsewhere)
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

    It includes the correction heads that are not in use, as zeros, because the reference expects all heads. Its arrays
    are copies, which share their numbers with the model's until one side is changed in place.

    Raises:
        ValueError: The model has no adapter.
    """
    attachment = attachment_of(model)
    config = attachment.config
    weights = {key: mx.array(tensor) for key, tensor in attachment.elsewhere.items()}
    for layer, attention in attached_attention(model).items():
        layer_memory = attention.delta_mem
        weights |= _with_all_heads(config, layer_memory.shape, layer, attachment.paths[layer], layer_memory)
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
        plain, together = entry is None and use is PLAIN, None if entry is None else entry.together
        forward = ForwardPass(states, access, use.observe, plain, use.is_off, together)
        token = FORWARD_PASS.set(forward)
        try:
            output = frozen_call(self, *args, **kwargs)
        finally:
            FORWARD_PASS.reset(token)
        is_late = forward.finish()
        if missed := self.attachment.paths.keys() - forward.layers_run:
            raise ValueError(
                f"this model did not call the attention modules of layers {sorted(missed)}, which have a memory; use "
                "an adapter whose target_layers leave them out"
            )
        if entry is not None:
            shape, entry.together = (forward.batch, forward.length), forward.together
            if joined := entry.end(forward.states, shape, forward.layer_passes, backbone, self.memory_layout.shapes):
                output = mx.depends(output, joined)
        if is_late or not config.delta_heads:
            # The output does not depend on the states, so MLX would not evaluate them with it. Without correction
            # heads, their graph would grow with every token. And late writes would begin the next call, when MLX's
            # threads have nothing else to do and must be woken for each operation. So they come at the end of this one.
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


def _check_and_part(model: nn.Module, adapter: Adapter, targets: Sequence[Target]) -> dict[str, mx.array]:
    """Check that an adapter fits a model; returns the tensors of the layers that are in other ranks of a pipeline.

    Raises:
        ValueError: It does not fit.
    """
    count, held = len(all_layers(model)), held_layers(model)
    others = set(range(count)) - set(held)
    check_weights(adapter, {target.layer: target.shape for target in targets}, count, others)
    kept: dict[str, mx.array] = {}
    paths = adapter.paths_by_layer()
    for layer, tensors in adapter.weights_by_layer().items():
        if layer in others:
            shape = _shape_like(tensors, targets)
            kept |= _with_all_heads(adapter.config, shape, layer, paths[layer], tensors)
    return kept


def _shape_like(tensors: Mapping[str, mx.array], targets: Sequence[Target]) -> AttentionShape:
    """The shape of a layer in another rank: what its tensors show, and else that of a layer in this one."""
    shown = shape_of(tensors)
    if not targets:
        return shown
    known = targets[0].shape
    q, k, v, o = (shown.width(head) or known.width(head) for head in HEADS)
    return replace(known, q=q, k=k, v=v, o=o)


def _with_all_heads(
    config: DeltaMemConfig, shape: AttentionShape, layer: int, path: str, tensors: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """The tensors of a layer under their full names, with zeros for the correction heads that are not in use."""
    inactive = inactive_parameters(config)
    complete = {name: mx.array(tensor) for name, tensor in tensors.items() if name not in inactive}
    for name in sorted(inactive):
        width = shape.width(name.split("_")[1])
        complete[name] = mx.zeros((width, config.width), tensors["memory_q_proj"].dtype)
    return {weight_key(layer, path, name): tensor for name, tensor in complete.items()}


def _layout(
    model: nn.Module, config: DeltaMemConfig, targets: Sequence[Target], elsewhere: Collection[int]
) -> MemoryLayout:
    shapes = [(0, 0, 0)] * len(all_layers(model))
    for layer in {target.layer for target in targets}.union(elsewhere):
        shapes[layer] = config.state_shape
    return MemoryLayout(type(model), shapes, len(make_backbone_cache(model, type(model))))


def attached_attention(model: nn.Module) -> dict[int, DeltaAttention]:
    """Get the attention modules in this process that have a memory, by layer index."""
    layers = all_layers(model)
    return {
        layer: dict(cast(nn.Module, layers[layer]).named_modules())[path]
        for layer, path in model.attachment.paths.items()
    }
