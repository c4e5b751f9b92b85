"""Give an adapter a wider memory, in fewer layers where that is wanted: `python -m tools.widen_adapter ADAPTER OUTPUT`.

What was learned stays: the rows of a state that are new are read by nobody yet, since the correction heads begin with
zeros for them. Training goes on from there (`mlx_deltamem.train --start OUTPUT`), with a larger state to fill.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapter import Adapter, layer_list, weight_key
from mlx_deltamem.command import command
from mlx_deltamem.config import DeltaMemConfig
from mlx_deltamem.files import user_path
from mlx_deltamem.options import count_from

# The length of new rows of the query and key projections, in those that are there. With none, neither of the two would
# ever be told by its gradient where to go; with much, what is stored already is read more faintly.
MIXED_IN = 0.3


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="python -m tools.widen_adapter", description=__doc__)
    parser.add_argument("adapter", help="Folder or Hub repo of the adapter.")
    parser.add_argument("output", type=user_path, help="The folder to make.")
    parser.add_argument("--rank", type=count_from(1), required=True, help="The new rank, larger than the adapter's.")
    parser.add_argument(
        "--target-layers",
        type=count_from(0),
        nargs="+",
        metavar="LAYER",
        help="Layers that keep their memory (default: all).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the new rows (default: 0).")
    return parser


def widened(
    adapter: Adapter, rank: int, layers: Sequence[int] = (), seed: int = 0, mixed_in: float = MIXED_IN
) -> Adapter:
    """An adapter with a larger rank; its correction heads are scaled as before (alpha grows with the rank).

    New rows of the memory projections are random, of the mean length of the old ones (queries and keys: `mixed_in` of
    it); new gates are the mean of the old ones of their state head; new columns of the correction heads are 0. With
    `mixed_in` 0, it computes what it did before.

    Args:
        adapter: The adapter to begin with.
        rank: The new rank.
        layers: Those that keep their memory; none named: all.
        seed: Of the new rows.
        mixed_in: How much of new dimensions is in the queries and keys.

    Raises:
        ValueError: The rank is not larger, a layer has no memory, or the adapter is for several kinds of modules.
    """
    old, there = adapter.config, adapter.weights_by_layer()
    if rank <= old.rank:
        raise ValueError(f"--rank is {rank}, and {adapter.source} has {old.rank}; expected a larger one")
    if missing := sorted(set(layers) - there.keys()):
        expected = layer_list(sorted(there))
        raise ValueError(f"{adapter.source} has no memory in {layer_list(missing)}; name some of {expected}")
    if len(old.target_modules) != 1:
        raise ValueError(f"{adapter.source} is for modules named {', '.join(old.target_modules)}; expected one name")
    kept = sorted(set(layers) or there)
    targets = tuple(kept) if layers else old.target_layers
    config = replace(old, rank=rank, alpha=old.alpha * rank / old.rank, target_layers=targets)
    key, weights = mx.random.key(seed), {}
    for layer in kept:
        for name, tensor in sorted(there[layer].items()):
            key, drawn = mx.random.split(key)
            wider = _widened(name, tensor, old, rank - old.rank, mixed_in, drawn)
            weights[weight_key(layer, old.target_modules[0], name)] = wider
    return replace(adapter, config=config, weights=weights, metadata=_metadata(adapter, rank, layers and kept))


def _widened(
    name: str, tensor: mx.array, config: DeltaMemConfig, more: int, mixed_in: float, key: mx.array
) -> mx.array:
    """A tensor of an adapter with `more` rows, or columns, for each state head."""
    heads = config.num_state_heads
    if name.startswith("delta_") and name.endswith("_proj"):
        columns = tensor.reshape(tensor.shape[0], heads, -1)
        return mx.pad(columns, [(0, 0), (0, 0), (0, more)]).reshape(tensor.shape[0], -1)
    if name.startswith("memory_"):
        rows = tensor.astype(mx.float32).reshape(heads, -1, tensor.shape[1])
        new = mx.random.normal((heads, more, rows.shape[2]), key=key)
        length = mx.linalg.norm(rows, axis=-1).mean() * (1.0 if name == "memory_v_proj" else mixed_in)
        new = new / mx.linalg.norm(new, axis=-1, keepdims=True) * length
        return mx.concatenate([rows, new], axis=1).reshape(-1, tensor.shape[1]).astype(tensor.dtype)
    if name.startswith(("beta_", "lambda_")) and config.rankwise_gates:
        gates = tensor.reshape(heads, -1, *tensor.shape[1:])
        new = mx.repeat(gates.mean(axis=1, keepdims=True), more, axis=1)
        return mx.concatenate([gates, new], axis=1).reshape(-1, *tensor.shape[1:])
    return tensor


def _metadata(adapter: Adapter, rank: int, layers: Sequence[int]) -> dict[str, str]:
    """What the adapter's file tells of where it came from, with what was done to it now."""
    done = f"widened to rank {rank}" + (f" in {layer_list(layers)}" if layers else "")
    earlier = adapter.metadata.get("changed")
    return dict(adapter.metadata) | {"changed": f"{earlier}, then {done}" if earlier else done}


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    if args.output.exists():
        raise ValueError(f"{args.output} exists already; delete it or name another folder")
    adapter = widened(load_adapter(args.adapter), args.rank, args.target_layers or (), args.seed)
    save_adapter(adapter, args.output)
    print(
        f"Wrote {args.output}: {adapter.parameters:,} parameters in {len(adapter.weights_by_layer())} layers, "
        f"{adapter.state_bytes:,} bytes of memory for each sequence"
    )


if __name__ == "__main__":
    main()
