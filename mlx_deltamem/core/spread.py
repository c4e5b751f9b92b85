"""A model that is spread over several ranks: which layers each rank holds, and what they have in common.

mlx-lm spreads a model in one of two ways. With tensors split, each rank holds a part of the heads of each layer, and
the input of a layer is the same in all ranks. So each rank computes the whole memory, and nothing is sent for it. In a
pipeline, each rank holds some layers, and computes the memory of these; the others follow by `whole_states`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream
from mlx_lm.sample_utils import Sampler, greedy_sampler

from mlx_deltamem.ranks.world import World


@dataclass(frozen=True)
class Spread:
    """How a model is spread over ranks (`model.spread`).

    Attributes:
        world: The ranks.
        backbone: The fingerprint of the whole backbone.
    """

    world: World
    backbone: str


def spread_of(model: nn.Module) -> Spread | None:
    """How a model is spread over ranks; None: this process has the whole model."""
    spread: Spread | None = getattr(model, "spread", None)
    return spread


def world_of(model: nn.Module) -> World:
    """The ranks that hold a model together: one rank if this process has the whole model."""
    spread = spread_of(model)
    return World(0, 1) if spread is None else spread.world


def held_layers(model: nn.Module) -> range:
    """The indices, in the whole model, of the layers that are in this process."""
    pipeline = _pipeline(model)
    return range(len(model.layers)) if pipeline is None else range(pipeline.start_idx, pipeline.end_idx)


def all_layers(model: nn.Module) -> list[nn.Module | None]:
    """The layers of the whole model; None for a layer in another process of a pipeline.

    Raises:
        ValueError: The model is in a pipeline, and its configuration has no number of layers.
    """
    pipeline = _pipeline(model)
    if pipeline is None:
        return list(model.layers)
    arguments = model.args
    nested = getattr(arguments, "text_config", None) or {}
    count = getattr(arguments, "num_hidden_layers", None) or nested.get("num_hidden_layers")
    if count is None:
        raise ValueError(f"{type(model).__name__} is in a pipeline and does not say how many layers it has")
    return [*pipeline.layers, *[None] * (count - len(pipeline.layers))]


def whole_states(model: nn.Module, states: Sequence[mx.array]) -> list[mx.array]:
    """The memory of the whole model, from the states of the layers in each rank of a pipeline.

    Other models have it already. All ranks must call this at the same place.

    Args:
        model: An attached model.
        states: By layer index, `[B, H, r, r]` float32, or `[B, 0, 0, 0]`. Those of layers in other ranks are replaced.
    """
    if _pipeline(model) is None:
        return list(states)
    held = held_layers(model)
    layers = [layer for layer, state in enumerate(states) if state.size]
    own = mx.stack([states[layer] if layer in held else mx.zeros_like(states[layer]) for layer in layers])
    # On the stream of the replies, so that all ranks have the same order of operations. A sum with zeros is exact.
    with mx.stream(generation_stream):
        total = mx.distributed.all_sum(own, group=world_of(model).group)
        mx.eval(total)
    whole = dict(zip(layers, total, strict=True))
    return [whole.get(layer, state) for layer, state in enumerate(states)]


def whole_numbers(model: nn.Module, numbers: Mapping[int, float]) -> dict[int, float]:
    """Numbers by layer index, of the layers in all ranks of a pipeline. All ranks must call this at the same place."""
    if _pipeline(model) is None:
        return dict(numbers)
    parts = world_of(model).collect([[layer, number] for layer, number in numbers.items()])
    pairs = [pair for part in cast("list[list[tuple[int, float]]]", parts) for pair in part]
    return dict(sorted(pairs))


@overload
def same_tokens(model: nn.Module, sampler: Sampler) -> Sampler: ...


@overload
def same_tokens(model: nn.Module, sampler: Sampler | None) -> Sampler | None: ...


def same_tokens(model: nn.Module, sampler: Sampler | None) -> Sampler | None:
    """A sampler that gives the token of rank 0 in all ranks.

    Ranks on different machines round differently, and draw different random numbers. They must not go on with
    different tokens. The number goes along with the step: 4 bytes for each row.

    Args:
        model: The model that makes the log probabilities.
        sampler: The sampler of rank 0; None: the most likely token.
    """
    world = world_of(model)
    if world.is_alone:
        return sampler
    factor = mx.array(int(world.is_first), mx.uint32)

    def sample(logprobs: mx.array) -> mx.array:
        tokens: mx.array = (sampler or greedy_sampler)(logprobs)
        # A product and not new zeros: in all ranks, this sum must come after those of the model that it depends on. MLX
        # orders operations by their graph, and ranks that have another order wait for each other for good. For the same
        # reason it is on the stream of the replies, on which the next pass may be under way already.
        with mx.stream(generation_stream):
            return mx.distributed.all_sum(tokens * factor, group=world.group)

    return sample


def _pipeline(model: nn.Module) -> Any:
    """The part of a model that mlx-lm has put into a pipeline (`PipelineMixin`); None if there is none."""
    for part in (model, getattr(model, "model", None), getattr(getattr(model, "language_model", None), "model", None)):
        if getattr(part, "pipeline_size", 1) > 1:
            return part
    return None
