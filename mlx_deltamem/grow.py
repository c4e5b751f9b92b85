"""Make more of an adapter, to train on from what it has learned: `mlx_deltamem.grow ADAPTER OUTPUT`.

A larger rank gives it wider states, which it may have in fewer layers; a λ of its own lets it keep what is there while
it writes. What is new has no effect yet, or next to none; `mlx_deltamem.train --start OUTPUT` finds a use for it.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_deltamem import DeltaMemConfig, load_adapter, save_adapter
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import count_from, number_from
from mlx_deltamem.core.adapter import Adapter, changed, layer_list, weight_key
from mlx_deltamem.core.initial import OPEN_GATE
from mlx_deltamem.files.atomic import check_absent, user_path
from mlx_deltamem.training.settings import check_seed

# How long the new part of queries and keys is, before they are normalised, in what was there. With nothing, neither of
# the two would ever be told by its gradient where to go; with much, what is stored already is read more faintly.
MIXED_IN = 0.4


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.grow", description=__doc__)
    parser.add_argument("adapter", help="Folder or Hub repo of the adapter.")
    parser.add_argument("output", type=user_path, help="The folder to make.")
    parser.add_argument("--rank", type=count_from(1), help="The new rank, larger than the adapter's.")
    parser.add_argument("--seed", type=count_from(0), help="Of the rows that are new with --rank (default: 0).")
    parser.add_argument(
        "--target-layers",
        type=count_from(0),
        nargs="+",
        metavar="LAYER",
        help="Layers that keep their memory (default: all).",
    )
    parser.add_argument(
        "--no-couple-lambda",
        dest="couple_lambda",
        action="store_false",
        help="Give λ, the share of the state that is kept, weights of its own; they begin at 1 - β, as it is.",
    )
    parser.add_argument(
        "--read-gate", action="store_true", help="Give it gates on what is read; they begin almost open."
    )
    parser.add_argument(
        "--key-shift",
        type=number_from(0.0, 10.0),
        metavar="FACTOR",
        help="Mix the memory query of the token written before into each key, by this factor at the beginning: with 0 "
        "nothing changes, with 1 as much as of the token itself.",
    )
    return parser


def with_layers(adapter: Adapter, layers: Sequence[int]) -> Adapter:
    """An adapter in some of its layers only.

    Raises:
        ValueError: One of them has no memory.
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
    """An adapter with a larger rank; its correction heads are scaled as before (alpha grows with the rank).

    New rows of the memory projections are random. Those of values are as long as the old ones are on average; those of
    queries and keys, taken together, `mixed_in` times as long as the old ones together. New gates are the mean of the
    old ones of their state head; new columns of the correction heads are 0. With `mixed_in` 0, it computes what it did
    before.

    Args:
        adapter: The adapter to begin with.
        rank: The new rank.
        seed: Of the new rows.
        mixed_in: How much of new dimensions is in the queries and keys.

    Raises:
        ValueError: The rank is not larger, or the seed too large.
    """
    old = adapter.config
    check_seed(seed)
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
    """A tensor of an adapter with `more` rows, or columns, for each state head."""
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
    if name.startswith(("beta_", "lambda_")) and config.rankwise_gates:
        gates = tensor.reshape(heads, -1, *tensor.shape[1:])
        new = mx.repeat(gates.mean(axis=1, keepdims=True), more, axis=1)
        return mx.concatenate([gates, new], axis=1).reshape(-1, *tensor.shape[1:])
    return tensor


def uncoupled(adapter: Adapter) -> Adapter:
    """An adapter whose λ has weights of its own: those of β with the other sign, so that λ is still 1 - β.

    Raises:
        ValueError: It has such weights already, or keeps all of the state.
    """
    if not adapter.config.couple_lambda:
        raise ValueError(f"{adapter.source} has a λ of its own already; leave out --no-couple-lambda")
    if adapter.config.state_update_mode == "no_lambda":
        raise ValueError(f"{adapter.source} keeps all of its state and has no λ; leave out --no-couple-lambda")
    weights = dict(adapter.weights)
    for layer, tensors in adapter.weights_by_layer().items():
        for name in ("proj", "bias"):
            weights[_key(adapter, layer, f"lambda_{name}")] = -tensors[f"beta_{name}"]
    config = replace(adapter.config, couple_lambda=False)
    return _grown(adapter, config, weights, "given a λ of its own")


def with_read_gates(adapter: Adapter) -> Adapter:
    """An adapter with gates on what is read, which are open.

    Raises:
        ValueError: It has such gates already.
    """
    if adapter.config.read_gate:
        raise ValueError(f"{adapter.source} has read gates already; leave out --read-gate")
    weights, heads = dict(adapter.weights), adapter.config.num_state_heads
    for layer, tensors in adapter.weights_by_layer().items():
        projections = tensors["beta_proj"]
        gates = {"proj": mx.zeros((heads, projections.shape[1])), "bias": mx.full((heads,), OPEN_GATE)}
        for name, tensor in gates.items():
            weights[_key(adapter, layer, f"read_gate_{name}")] = tensor.astype(projections.dtype)
    return _grown(adapter, replace(adapter.config, read_gate=True), weights, "given read gates")


def with_key_shift(adapter: Adapter, factor: float) -> Adapter:
    """An adapter whose keys have in them, by this factor, the memory query of the token written before.

    Raises:
        ValueError: It has a key shift already.
    """
    if adapter.config.key_shift:
        raise ValueError(f"{adapter.source} has a key shift already; leave out --key-shift")
    weights = dict(adapter.weights)
    for layer, tensors in adapter.weights_by_layer().items():
        shift = mx.full((adapter.config.width,), factor)
        weights[_key(adapter, layer, "key_shift")] = shift.astype(tensors["beta_proj"].dtype)
    return _grown(adapter, replace(adapter.config, key_shift=True), weights, "given a key shift")


def _key(adapter: Adapter, layer: int, name: str) -> str:
    modules = adapter.config.target_modules
    if len(modules) != 1:
        raise ValueError(f"{adapter.source} is for modules named {', '.join(modules)}; expected one name")
    return weight_key(layer, modules[0], name)


def _grown(adapter: Adapter, config: DeltaMemConfig, weights: dict[str, mx.array], done: str) -> Adapter:
    metadata = dict(adapter.metadata) | {"changed": changed(adapter.metadata, done)}
    return replace(adapter, config=config, weights=weights, metadata=metadata)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    if not (args.rank or args.target_layers or not args.couple_lambda or args.read_gate or args.key_shift is not None):
        raise ValueError(
            "nothing is to be changed; give --rank, --target-layers, --no-couple-lambda, --read-gate or --key-shift"
        )
    if args.seed is not None and args.rank is None:
        raise ValueError("--seed is of the rows that are new with --rank; give both or neither")
    check_absent(args.output)
    adapter = load_adapter(args.adapter)
    if args.target_layers:
        adapter = with_layers(adapter, args.target_layers)
    if args.rank is not None:
        adapter = widened(adapter, args.rank, args.seed or 0)
    if not args.couple_lambda:
        adapter = uncoupled(adapter)
    if args.read_gate:
        adapter = with_read_gates(adapter)
    if args.key_shift is not None:
        adapter = with_key_shift(adapter, args.key_shift)
    save_adapter(adapter, args.output)
    print(
        f"Wrote {args.output}: {adapter.parameters:,} parameters in {layer_list(sorted(adapter.weights_by_layer()))}, "
        f"{adapter.state_bytes:,} bytes of memory for each sequence"
    )


if __name__ == "__main__":
    main()
