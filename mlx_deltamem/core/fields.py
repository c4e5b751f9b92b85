"""The fields of `delta_mem_config.json` that are not in use, and the rules that several fields share."""

from collections.abc import Collection, Iterable

from mlx_deltamem.options.rule import Rule, shown

# The projections that can be corrected.
HEADS = ("q", "k", "v", "o")

# The rank, and the number of state heads. The limit is far beyond any use: MLX crashes, without an error about memory,
# on much larger states.
SIZE = Rule(int, least=1, most=1024)

_LONGEST_NAME = 80

# Options that the reference has given up. Only the value below has a meaning.
ARCHIVED: dict[str, object] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "memory_reader_layers": [],
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
}

# Options that the reference reads and never uses.
INERT = {
    "memory_reader_hidden_size",
    "memory_reader_residual_scale",
    "memory_reader_read_only",
    "latent_memory_hidden_size",
    "latent_memory_residual_scale",
    "latent_memory_slots",
    "latent_memory_init_std",
    "latent_gate_init",
    "memory_partition_sigmoid_gate_bias_init",
    "global_memory_gate_bias_init",
    "global_memory_read_logit_bias",
}


def problems_of_names(values: Iterable[tuple[str, object]], known: Collection[str]) -> list[str]:
    """A message for each unknown field, and for each archived field with another value than its only one.

    Args:
        values: The fields.
        known: The names of the fields that are in use.
    """
    problems = []
    for name, value in values:
        if name in ARCHIVED and not _same(value, ARCHIVED[name]):
            problems.append(f"{name} is {shown(value)}; expected only {ARCHIVED[name]!r} (an archived option)")
        elif name not in {*known, *INERT, *ARCHIVED}:
            names = ", ".join(sorted(known))
            plain = name if name.isidentifier() and len(name) <= _LONGEST_NAME else shown(name)
            problems.append(f"{plain} is {shown(value)}; a δ-mem config has no field of this name, expected {names}")
    return problems


def _same(value: object, fixed: object) -> bool:
    """Equality as in JSON, where False is not 0 and 1 is not 1.0."""
    return type(value) is type(fixed) and value == fixed
