"""The configuration of a δ-mem adapter: the live fields of the reference's `delta_mem_config.json`."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mlx_deltamem.recurrence.gates import Variant

CONFIG_FILE = "delta_mem_config.json"
HEADS = ("q", "k", "v", "o")
# Fields that the reference does not have, and refuses by name; off where a file does not have them.
OWN_FIELDS = ("read_gate", "key_shift")

# Far beyond any use; over much larger states MLX crashes, rather than to say that there is no memory for them.
_LARGEST = 1024

# Options the reference has given up: each must hold this value, since no other one has a meaning any more.
_ARCHIVED: dict[str, object] = {
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

# Options the reference still reads and never uses.
_INERT = {
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
class DeltaMemConfig:
    """What a δ-mem adapter computes (arXiv 2605.12357; the reference's own field names and defaults).

    Attributes:
        rank: r, the width of one state (r x r per state head and layer).
        alpha: The corrections are scaled by alpha / rank.
        beta_bias_init: Initial bias of the write gate; read at initialisation only.
        normalize_qk: Pass memory queries and keys through tanh and an L2 norm over each state head.
        couple_lambda: keep = 1 - beta; otherwise the adapter has a gate of its own for it.
        state_update_mode: `standard` (keep = lambda, erase = write = beta), `lambda_outside` (erase = lambda * beta)
            or `no_lambda` (keep = 1).
        rankwise_gates: One gate per state row; otherwise one per state head.
        output_init: How the correction heads start: `zero`, `random`, `base_slice`, `base_slice_fixed`.
        base_slice_ref_width: Columns that `base_slice_fixed` fills.
        online_gain: Size of the initial correction heads.
        num_state_heads: H, the number of states per layer.
        memory_write_granularity: What is written: every `token`, `message_mean` or `sentence_mean`.
        target_modules: Names of the attention modules in a layer.
        target_layers: Layers that get a memory; empty means all of them.
        delta_heads: Which of q, k, v, o are corrected; may be empty.
        delta_o_rmsnorm: Normalise the correction of the attention output, with `delta_o_rmsnorm_eps`.
        trainable_delta_scale: A learned factor in (0, delta_scale_max) on the corrections, starting at
            `delta_scale_init`, one per `layer` or per `head` (`delta_scale_granularity`).
        read_gate: A gate on what each token reads, one per state head, by which the memory can be silent. It is no
            field of the reference's; where it is false, files do not have it.
        key_shift: The key of a token is mixed with the memory query of the token written before it, by a learned
            factor for each of its numbers: a query from a like place then finds what came next. A short convolution
            (facts.md 8.3) whose second tap is the query's projection. No field of the reference's either.

    Raises:
        ValueError: A field has a value that is not allowed; all such fields are named.
    """

    rank: int = 8
    alpha: float = 16.0
    beta_bias_init: float = -1.5
    normalize_qk: bool = True
    couple_lambda: bool = True
    state_update_mode: str = "standard"
    rankwise_gates: bool = True
    output_init: str = "zero"
    base_slice_ref_width: int = 8
    online_gain: float = 0.05
    num_state_heads: int = 1
    memory_write_granularity: str = "token"
    target_modules: tuple[str, ...] = ("self_attn",)
    target_layers: tuple[int, ...] = ()
    delta_heads: tuple[str, ...] = HEADS
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_init: float = 1.0
    delta_scale_max: float = 2.0
    delta_scale_granularity: str = "layer"
    delta_scale_parameterization: str = "alpha_over_rank"
    read_gate: bool = False
    key_shift: bool = False

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            rule = _RULES[field.name]
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, rule.parse(value))
            except (TypeError, ValueError, OverflowError):
                problems.append(f"{field.name} is {value!r}, allowed is {rule.allowed}")
        if not problems and not self.delta_scale_init < self.delta_scale_max:
            problems.append(
                f"delta_scale_init is {self.delta_scale_init}, allowed is a number below delta_scale_max, "
                f"which is {self.delta_scale_max}"
            )
        _raise_all(problems)

    @property
    def width(self) -> int:
        """R = r * H: the width of all state heads side by side."""
        return self.rank * self.num_state_heads

    @property
    def variant(self) -> Variant:
        """The fields that the recurrence needs."""
        return Variant(
            rank=self.rank,
            heads=self.num_state_heads,
            normalized=self.normalize_qk,
            rankwise=self.rankwise_gates,
            free_lambda=not self.couple_lambda and self.state_update_mode != "no_lambda",
            mode=self.state_update_mode,
        )

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """`(H, r, r)`, the shape of a layer's state; with a key shift `(H, r + 1, r)`: the last row is then the memory
        query of the token written last."""
        return self.num_state_heads, self.rank + self.key_shift, self.rank

    @property
    def gate_width(self) -> int:
        """G: the number of gate values of one token, R or H."""
        return self.width if self.rankwise_gates else self.num_state_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DeltaMemConfig":
        """Read the reference's fields: missing ones take the defaults, inert ones are dropped.

        Raises:
            ValueError: An unknown field, an archived field off its fixed value, or a value that is not allowed.
        """
        live = {field.name for field in fields(cls)}
        problems = []
        for name, value in values.items():
            if name in _ARCHIVED and not _same(value, _ARCHIVED[name]):
                problems.append(f"{name} is {value!r}, allowed is only {_ARCHIVED[name]!r} (an archived option)")
            elif name not in live | _INERT | _ARCHIVED.keys():
                problems.append(f"{name} is {value!r}, which is no field of a δ-mem config (allowed: {_listing(live)})")
        known = {name: value for name, value in values.items() if name in live}
        try:
            config = cls(**known)
        except ValueError as error:
            problems.append(str(error).removeprefix(_PREFIX))
        _raise_all(problems)
        return config

    @classmethod
    def load(cls, path: str | Path) -> "DeltaMemConfig":
        """Read a `delta_mem_config.json`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a JSON object, or as in `from_dict`; the message names the file.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}); expected the config of a δ-mem adapter") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a JSON {type(values).__name__}; expected an object with δ-mem's fields")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The text of a `delta_mem_config.json`; the reference reads it too, where no field of `OWN_FIELDS` is set."""
        left_out = {name for name in OWN_FIELDS if not getattr(self, name)}
        values = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(values, indent=2) + "\n"


@dataclass(frozen=True)
class _Rule:
    """How a field's value is read (ValueError or TypeError: it is not allowed) and what to say then."""

    parse: Callable[[object], object]
    allowed: str


def _integer(least: int, most: float = math.inf) -> _Rule:
    allowed = f"an integer >= {least}" if most == math.inf else f"an integer, {least} to {most}"
    return _Rule(lambda value: _checked(value, type(value) is int and least <= value <= most), allowed)


def _number(above: float = -math.inf) -> _Rule:
    def parse(value: object) -> float:
        if type(value) not in (int, float):
            raise TypeError
        number = float(value)
        return _checked(number, math.isfinite(number) and number > above)

    return _Rule(parse, "a finite number" if above == -math.inf else f"a finite number > {above:g}")


def _boolean() -> _Rule:
    return _Rule(lambda value: _checked(value, type(value) is bool), "true or false")


def _choice(*choices: str) -> _Rule:
    return _Rule(lambda value: _checked(value, isinstance(value, str) and value in choices), _listing(choices))


def _items(item: Callable[[object], bool], allowed: str, least: int = 0) -> _Rule:
    def parse(value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError
        distinct = len(value) >= least and all(item(v) for v in value) and len(set(value)) == len(value)
        return _checked(tuple(value), distinct)

    return _Rule(parse, allowed)


def _heads(value: object) -> tuple[str, ...]:
    chosen = () if value in ("none", "", ["none"], ("none",)) else value
    if not isinstance(chosen, list | tuple):
        raise TypeError
    _checked(chosen, all(isinstance(head, str) and head in HEADS for head in chosen))
    return tuple(head for head in HEADS if head in chosen)


def _checked(value: object, fine: bool) -> object:
    if not fine:
        raise ValueError
    return value


def _same(value: object, fixed: object) -> bool:
    """Equality that tells False from 0 and 1.0 from 1, as JSON does."""
    return type(value) is type(fixed) and value == fixed


def _listing(names: set[str] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names) if isinstance(names, set) else names)


_PREFIX = "δ-mem config: "


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError(_PREFIX + "; ".join(problems))


_RULES: dict[str, _Rule] = {
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
    "delta_heads": _Rule(_heads, "a list drawn from q, k, v, o (may be empty)"),
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
