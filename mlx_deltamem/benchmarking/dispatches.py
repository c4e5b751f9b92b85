"""Counts what a memory adds to a decode step: the primitives of MLX's graph, each of which is one dispatch."""

import io
import re
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import attachment_of

# Primitives that only look at an array in another way.
VIEWS = {
    "Broadcast",
    "BroadcastAxes",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unflatten",
}


def added_primitives(attached: nn.Module, frozen: nn.Module, batch: int = 1) -> dict[str, float]:
    """What each attached layer adds to the primitives of a decode step, by name, views left out.

    The graph of a first token is built and counted, and not run. A function compiled by `mx.compile` counts as the
    primitives that it fuses into, whose names begin with `Compiled`. Only the architecture, the dtypes and the
    configuration of the adapter matter, so tiny models tell it too.

    Args:
        attached: A model with an adapter.
        frozen: The same model without.
        batch: The rows that are decoded at once.

    Returns:
        Primitives per attached layer, on average; `sum(added_primitives(...).values())` is the total.

    Raises:
        ValueError: `attached` has no adapter.
    """
    layers = len(attachment_of(attached).paths)
    added = _step_primitives(attached, batch)
    added.subtract(_step_primitives(frozen, batch))
    return {name: count / layers for name, count in added.items() if count}


def _step_primitives(model: nn.Module, batch: int) -> Counter[str]:
    cache = make_prompt_cache(model)
    mx.eval(model.parameters())
    logits = model(mx.zeros((batch, 1), mx.int32), cache=cache)
    states = [state for _, state in tree_flatten([entry.state for entry in cache]) if isinstance(state, mx.array)]
    graph = io.StringIO()
    mx.export_to_dot(graph, logits, *states)
    names = re.findall(r'label ="(\w+)", shape=rectangle', graph.getvalue())
    return Counter(name for name in names if name not in VIEWS)
