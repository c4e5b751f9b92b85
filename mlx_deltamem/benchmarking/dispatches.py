"""Count the primitives that a memory adds to the graph of a decode step. Each primitive is one dispatch."""

import io
import re
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import attachment_of

# Primitives that only give another view of an array.
VIEWS = {
    "Broadcast",
    "BroadcastAxes",
    "Depends",
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
    """Count the primitives that each attached layer adds to a decode step, without views.

    The graph of a first token is built but not run. A function compiled by `mx.compile` counts as its fused primitives,
    which have names that begin with `Compiled`. The result depends only on the architecture, the dtypes and the
    configuration of the adapter, so a tiny model gives the same numbers as a large one.

    Args:
        attached: A model with an adapter.
        frozen: The same model without an adapter.
        batch: The number of rows that are decoded together.

    Returns:
        By the name of the primitive, the mean number per attached layer.

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
    states = [leaf[1] for leaf in tree_flatten([entry.state for entry in cache]) if isinstance(leaf[1], mx.array)]
    graph = io.StringIO()
    mx.export_to_dot(graph, logits, *states)
    names = re.findall(r'label ="(\w+)", shape=rectangle', graph.getvalue())
    return Counter(name for name in names if name not in VIEWS)
