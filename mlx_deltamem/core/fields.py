"""The fields of `delta_mem_config.json`: which values are allowed, and which fields the reference no longer uses."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# The projections that can be corrected.
HEADS = ("q", "k", "v", "o")

# The largest rank and number of state heads, far beyond any use. MLX crashes, without an error about memory, on much
# larger states.
_LARGEST = 1024

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


@dataclass(frozen=True)
class Rule:
    """The rule for a field's value.

    Attributes:
        parse: Returns the value in its final form; raises ValueError, TypeError or OverflowError if it is not allowed.
        allowed: The allowed values in words, for messages.
    """

    parse: Callable[[object], object]
    allowed: str


def _integer(least: int, most: float = math.inf) -> Rule:
    def parse(value: object) -> int:
        # Not isinstance, because True is an int.
        if type(value) is not int:
            raise TypeError
        return _checked(value, least <= value <= most)

    return Rule(parse, f"an integer >= {least}" if most == math.inf else f"an integer, {least} to {most}")


def _number(above: float = -math.inf) -> Rule:
    def parse(value: object) -> float:
        if type(value) is not int and type(value) is not float:
            raise TypeError
        number = float(value)
        return _checked(number, math.isfinite(number) and number > above)

    return Rule(parse, "a finite number" if above == -math.inf else f"a finite number > {above:g}")


def _boolean() -> Rule:
    return Rule(lambda value: _checked(value, type(value) is bool), "true or false")


def _choice(*choices: str) -> Rule:
    return Rule(lambda value: _checked(value, isinstance(value, str) and value in choices), ", ".join(choices))


def _items(allowed_item: Callable[[object], bool], allowed: str, least: int = 0) -> Rule:
    """A list of at least `least` distinct items."""

    def parse(value: object) -> tuple[object, ...]:
        items = _sequence(value)
        fine = len(items) >= least and all(allowed_item(item) for item in items) and len(set(items)) == len(items)
        return _checked(items, fine)

    return Rule(parse, allowed)


def _heads(value: object) -> tuple[str, ...]:
    """The heads in the order of `HEADS`; the reference also writes an empty list as `none`."""
    chosen = () if value in ("none", "", ["none"], ("none",)) else _sequence(value)
    _checked(chosen, all(isinstance(head, str) and head in HEADS for head in chosen))
    return tuple(head for head in HEADS if head in chosen)


def _sequence(value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(value)


def _checked(value: T, fine: bool) -> T:
    if not fine:
        raise ValueError
    return value


RULES: dict[str, Rule] = {
    "rank": _integer(1, _LARGEST),
    "alpha": _number(),
    "beta_bias_init": _number(),
    "normalize_qk": _boolean(),
    "couple_lambda": _boolean(),
    "state_update_mode": _choice("standard", "lambda_outside", "no_lambda"),
    "rankwise_gates": _boolean(),
    "output_init": _choice("zero", "random", "base_slice", "base_slice_fixed"),
    "base_slice_ref_width": _integer(1),
    "online_gain": _number(),
    "num_state_heads": _integer(1, _LARGEST),
    "memory_write_granularity": _choice("token", "message_mean", "sentence_mean"),
    "target_modules": _items(
        lambda name: isinstance(name, str) and bool(name) and "." not in name,
        "a list of one or more distinct module names without dots",
        least=1,
    ),
    "target_layers": _items(
        lambda layer: type(layer) is int and layer >= 0, "a list of distinct layer indices >= 0 (empty: all layers)"
    ),
    "delta_heads": Rule(_heads, "a list drawn from q, k, v, o (may be empty)"),
    "delta_o_rmsnorm": _boolean(),
    "delta_o_rmsnorm_eps": _number(above=0),
    "trainable_delta_scale": _boolean(),
    "delta_scale_init": _number(above=0),
    "delta_scale_max": _number(above=0),
    "delta_scale_granularity": _choice("layer", "head"),
    "delta_scale_parameterization": _choice("alpha_over_rank"),
    "read_gate": _boolean(),
    "key_shift": _boolean(),
}


def problems_of_fields(values: Iterable[tuple[str, object]]) -> tuple[dict[str, object], list[str]]:
    """Check fields by their rules.

    Returns:
        The parsed values by name, and a message for each value that is not allowed.
    """
    parsed: dict[str, object] = {}
    problems = []
    for name, value in values:
        rule = RULES[name]
        try:
            parsed[name] = rule.parse(value)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name} is {value!r}, allowed is {rule.allowed}")
    return parsed, problems


def problems_of_names(values: Iterable[tuple[str, object]]) -> list[str]:
    """A message for each unknown field, and for each archived field with another value than its only one."""
    problems = []
    for name, value in values:
        if name in ARCHIVED and not _same(value, ARCHIVED[name]):
            problems.append(f"{name} is {value!r}, allowed is only {ARCHIVED[name]!r} (an archived option)")
        elif name not in RULES.keys() | INERT | ARCHIVED.keys():
            known = ", ".join(sorted(RULES))
            problems.append(f"{name} is {value!r}, but a δ-mem config has no field of this name (allowed: {known})")
    return problems


def _same(value: object, fixed: object) -> bool:
    """Equality as in JSON, where False is not 0 and 1 is not 1.0."""
    return type(value) is type(fixed) and value == fixed
