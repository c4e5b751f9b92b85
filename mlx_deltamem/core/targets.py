"""Finds the attention layers of a model that get a memory."""

from dataclasses import dataclass

import mlx.nn as nn

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, attention_shape
from mlx_deltamem.core.spread import all_layers, held_layers


@dataclass(frozen=True)
class Target:
    """An attention layer that gets a memory.

    Attributes:
        layer: The index of the layer.
        module: The attention module.
        path: The name of the module within the layer, such as `self_attn`.
        name: The name of the module within the model.
        shape: The widths of the module.
    """

    layer: int
    module: nn.Module
    path: str
    name: str
    shape: AttentionShape


def find_attention(model: nn.Module, config: DeltaMemConfig) -> list[Target]:
    """Find the attention layers that a configuration names (`target_layers` and `target_modules`).

    Of a model in a pipeline, only those in this process are found.

    Raises:
        ValueError: There are none, a named layer is missing, or a layer is not supported.
    """
    if not getattr(model, "layers", None):
        raise ValueError(f"{type(model).__name__} has no layers; expected a language model from mlx_lm.load")
    layers = all_layers(model)
    if beyond := [layer for layer in config.target_layers if layer >= len(layers)]:
        raise ValueError(f"target_layers names {beyond}; the model has layers 0 to {len(layers) - 1}")
    names = {id(module): name for name, module in model.named_modules()}
    targets = []
    for index in config.target_layers or range(len(layers)):
        layer = layers[index]
        if layer is None:
            continue
        found = _modules_named(layer, config.target_modules)
        if len(found) > 1 or (not found and config.target_layers):
            raise ValueError(
                f"layer {index} has {', '.join(sorted(found)) or 'no module'} of the target_modules "
                f"{', '.join(config.target_modules)}; expected exactly one"
            )
        for path, module in found.items():
            try:
                shape = attention_shape(module)
            except ValueError as error:
                raise ValueError(f"{names[id(module)]} is not supported: {error}") from None
            if lacking := [head for head in config.delta_heads if not shape.width(head)]:
                raise ValueError(
                    f"{names[id(module)]} has no {' and '.join(f'{head}_proj' for head in lacking)} to correct; "
                    "leave these heads out of delta_heads"
                )
            targets.append(Target(index, module, path, names[id(module)], shape))
    if not targets and len(held_layers(model)) == len(layers):
        raise ValueError(f"no layer of {type(model).__name__} has a module named {', '.join(config.target_modules)}")
    return targets


def _modules_named(layer: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    return {path: module for path, module in layer.named_modules() if path.rpartition(".")[2] in names}
