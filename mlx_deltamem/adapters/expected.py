"""Check the shapes of an adapter's tensors from the header of their file, before any number is read."""

import math
from collections.abc import Mapping
from typing import cast

import mlx.core as mx

from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.fields import HEADS
from mlx_deltamem.core.shapes import AttentionShape, parameter_shapes

# Smaller tensors are read, because `check_weights` then lists all problems together.
_LARGE = 1 << 20
# The hidden size of the largest models is below 65,536, and the width of their queries too.
_WIDEST = 1 << 18


def check_expected(source: str, config: DeltaMemConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse large tensors that do not fit an adapter's configuration.

    Args:
        source: The name of the adapter, for the error.
        config: Its configuration.
        shapes: The shapes of its tensors, by name.

    Raises:
        ValueError: A tensor of more than a million numbers is not one of the configuration, or has another shape.
    """
    # `weights_by_layer` sorts tensors by their names alone.
    layers = Adapter(config, cast("Mapping[str, mx.array]", shapes)).weights_by_layer()
    large = {name: shape for name, shape in shapes.items() if math.prod(shape) > _LARGE}
    fitting = 0
    for tensors in layers.values():
        found = cast("Mapping[str, tuple[int, ...]]", tensors)
        expected = parameter_shapes(config, _attention_shape(found))
        fitting += sum(
            math.prod(shape) > _LARGE and shape == expected.get(name) and max(shape) <= _WIDEST
            for name, shape in found.items()
        )
    if fitting < len(large):
        listed = ", ".join(f"{shown(name)} {list(shape[:4])}" for name, shape in list(large.items())[:3])
        raise ValueError(
            f"{source} does not fit: it has large tensors that are not of its configuration (of {listed}); get the "
            "files again"
        )


def _attention_shape(shapes: Mapping[str, tuple[int, ...]]) -> AttentionShape:
    """The attention layer that the tensors of a layer were made for; 0 for a width that they do not show."""

    def width(name: str, axis: int) -> int:
        shape = shapes.get(name)
        return shape[axis] if shape else 0

    q, k, v, o = (width(f"delta_{head}_proj", 0) for head in HEADS)
    return AttentionShape(width("memory_q_proj", -1), q, k, v, o)
