"""Make larger or more capable adapters from trained ones, as a start for more training.

Each function returns a new adapter that computes the same as before, or nearly the same: its new weights have no or
little effect until training changes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_deltamem.core.adapter import Adapter, changed, layer_list, weight_key
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.initial import OPEN_GATE

# The length of the new part of raw queries and keys, relative to the old part. With 0, the gradients of both new parts
# would be 0 for ever; with a large number, the states that are stored already are read more faintly.
MIXED_IN = 0.4


def with_layers(adapter: Adapter, layers: Sequence[int]) -> Adapter:
    """Return an adapter with a memory in some of its layers only.

    Args:
        adapter: The adapter to start from.
        layers: The indices of the layers to keep.

    Raises:
        ValueError: The adapter has no memory in one of them.
    """
    there = adapter.weights_by_layer()
    if missing := sorted(set(layers) - there.keys()):
        expected = layer_list(sorted(there))
        raise ValueError(f"{adapter.source} has no memory in {layer_list(missing)}; name some of {expected}")
    kept = sorted(set(layers))
    weights = {_key(adapter, layer, name): tensor for layer in kept for name, tensor in there[layer].items()}
    config = replace(adapter.config, target_layers=tuple(kept))
    return _grown(adapter, config, weights, f"kept in {layer_list(kept)}")


def widened(adapter: Adapter, rank: int, seed: int = 0, mixed_in: float = MIXED_IN) -> Adapter:
    """Return an adapter with a larger rank. Alpha grows with the rank, so that the corrections keep their scale.

    The new rows of the memory projections are random. Those of the values are as long as the old rows are on average;
    those of the queries and of the keys, taken together, are `mixed_in` times as long as the old rows together. New
    gates and key shifts are the mean of the old ones of their state head. New columns of the correction heads are 0.

    Args:
        adapter: The adapter to start from.
        rank: The new rank.
        seed: Seed of the new rows, below 2**64.
        mixed_in: The length of the new part of queries and keys; with 0, the adapter computes the same as before.

    Raises:
        ValueError: The new rank is not larger than the old one, or larger than a configuration allows.
    """
    old = adapter.config
    if rank <= old.rank:
        raise ValueError(f"--rank is {rank}, and {adapter.source} has {old.rank}; expected a larger one")
    config = replace(old, rank=rank, alpha=old.alpha * rank / old.rank)
    key, weights = mx.random.key(seed), {}
    for layer, tensors in sorted(adapter.weights_by_layer().items()):
        for name, tensor in sorted(tensors.items()):
            key, drawn = mx.random.split(key)
            weights[_key(adapter, layer, name)] = _wider(name, tensor, old, rank - old.rank, mixed_in, drawn)
    return _grown(adapter, config, weights, f"widened to rank {rank}")


def _wider(name: str, tensor: mx.array, config: DeltaMemConfig, more: int, mixed_in: float, key: mx.array) -> mx.array:
    """Return a tensor of an adapter with `more` rows (or columns) added for each state head."""
    heads = config.num_state_heads
    if name.startswith("delta_") and name.endswith("_proj"):
        columns = tensor.reshape(tensor.shape[0], heads, config.rank)
        return mx.pad(columns, [(0, 0), (0, 0), (0, more)]).reshape(tensor.shape[0], heads * (config.rank + more))
    if name.startswith("memory_"):
        rows = tensor.astype(mx.float32).reshape(heads, -1, tensor.shape[1])
        new = mx.random.normal((heads, more, rows.shape[2]), key=key)
        share = 1.0 if name == "memory_v_proj" else mixed_in * math.sqrt(config.rank / more)
        length = mx.linalg.norm(rows, axis=-1).mean() * share
        new = new / mx.linalg.norm(new, axis=-1, keepdims=True) * length
        return mx.concatenate([rows, new], axis=1).reshape(-1, tensor.shape[1]).astype(tensor.dtype)
    if name == "key_shift" or (name.startswith(("beta_", "lambda_")) and config.rankwise_gates):
        by_head = tensor.reshape(heads, -1, *tensor.shape[1:])
        new = mx.repeat(by_head.mean(axis=1, keepdims=True), more, axis=1)
        return mx.concatenate([by_head, new], axis=1).reshape(-1, *tensor.shape[1:])
    return tensor


def uncoupled(adapter: Adapter) -> Adapter:
    """Return an adapter with separate weights for λ: those of β with the opposite sign, so that λ is still 1 - β.

    Raises:
        ValueError: The adapter has such weights already, or has no λ because it keeps all of its state.
    """
    if not adapter.config.couple_lambda:
        raise ValueError(f"{adapter.source} already has separate weights for λ; leave out --no-couple-lambda")
    if adapter.config.state_update_mode == "no_lambda":
        raise ValueError(f"{adapter.source} keeps all of its state and has no λ; leave out --no-couple-lambda")

    def gates(tensors: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
        return {f"lambda_{name}": -tensors[f"beta_{name}"] for name in ("proj", "bias")}

    return _with_tensors(adapter, replace(adapter.config, couple_lambda=False), gates, "given a λ of its own")


def with_read_gates(adapter: Adapter) -> Adapter:
    """Return an adapter with gates on its reads, which are almost open.

    Raises:
        ValueError: The adapter already has read gates.
    """
    if adapter.config.read_gate:
        raise ValueError(f"{adapter.source} already has read gates; leave out --read-gate")
    heads = adapter.config.num_state_heads

    def gates(tensors: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
        hidden = tensors["beta_proj"].shape[1]
        return {"read_gate_proj": mx.zeros((heads, hidden)), "read_gate_bias": mx.full((heads,), OPEN_GATE)}

    return _with_tensors(adapter, replace(adapter.config, read_gate=True), gates, "given read gates")


def with_key_shift(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter with a key shift: the memory query of the token written before is added to each key.

    Args:
        adapter: The adapter to start from.
        factor: The initial factor of the query; with 0, the adapter computes the same as before.

    Raises:
        ValueError: The adapter already has a key shift.
    """
    if adapter.config.key_shift:
        raise ValueError(f"{adapter.source} already has a key shift; leave out --key-shift")
    width = adapter.config.width
    config = replace(adapter.config, key_shift=True)
    return _with_tensors(adapter, config, lambda _: {"key_shift": mx.full((width,), factor)}, "given a key shift")


def _with_tensors(
    adapter: Adapter,
    config: DeltaMemConfig,
    more: Callable[[Mapping[str, mx.array]], Mapping[str, mx.array]],
    done: str,
) -> Adapter:
    """Return an adapter with more tensors, which `more` makes of the tensors of each layer."""
    weights = dict(adapter.weights)
    for layer, tensors in adapter.weights_by_layer().items():
        for name, tensor in more(tensors).items():
            weights[_key(adapter, layer, name)] = tensor.astype(tensors["beta_proj"].dtype)
    return _grown(adapter, config, weights, done)


def _key(adapter: Adapter, layer: int, name: str) -> str:
    return weight_key(layer, adapter.paths_by_layer()[layer], name)


def _grown(adapter: Adapter, config: DeltaMemConfig, weights: dict[str, mx.array], done: str) -> Adapter:
    metadata = dict(adapter.metadata) | {"changed": changed(adapter.metadata, done)}
    # Copies, because weights that stay as they are would be arrays of both adapters.
    copies = {name: mx.array(weight) for name, weight in weights.items()}
    return replace(adapter, config=config, weights=copies, metadata=metadata)
