"""The configuration of a δ-mem adapter: the fields of the reference's `delta_mem_config.json` that it uses."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_deltamem.core.fields import HEADS, SIZE, problems_of_names
from mlx_deltamem.files.jsonl import read_json
from mlx_deltamem.options.option import option, options_of, raise_all
from mlx_deltamem.options.rule import POSITIVE, Rule, shown
from mlx_deltamem.recurrence.variant import Variant

CONFIG_FILE = "delta_mem_config.json"
# Fields that the reference does not have. It refuses them by name, so a file has them only where they are true.
OWN_FIELDS = ("read_gate", "key_shift")

_MODULES = Rule(str, several=True, distinct=True, pattern=r"[^.]+", words="the name of a module without dots")
_PREFIX = "δ-mem config: "


@dataclass(frozen=True)
class DeltaMemConfig:
    """The configuration of a δ-mem adapter (arXiv 2605.12357). Names and defaults of the fields are the reference's.

    Attributes:
        rank: r, the width of a state (r x r for each state head and layer).
        alpha: The corrections are scaled by alpha / rank.
        beta_bias_init: The initial bias of the write gate β.
        normalize_qk: Pass memory queries and keys through tanh and an L2 norm for each state head.
        couple_lambda: λ = 1 - β; otherwise λ has its own projection.
        state_update_mode: `standard` (keep = λ, erase = β), `lambda_outside` (erase = λ * β) or `no_lambda` (keep = 1).
        rankwise_gates: One gate for each row of a state; otherwise one for each state head.
        output_init: How the correction heads start: `zero`, `random`, `base_slice`, `base_slice_fixed`.
        base_slice_ref_width: The number of columns that `base_slice_fixed` fills.
        online_gain: The size of the correction heads at the start.
        num_state_heads: H, the number of states in a layer.
        memory_write_granularity: What is written: every `token`, `message_mean` or `sentence_mean`.
        target_modules: The names of the attention modules in a layer.
        target_layers: The layers that get a memory; empty: all of them.
        delta_heads: The projections that are corrected, of q, k, v, o; may be empty.
        delta_o_rmsnorm: Normalise the correction of the attention output, with the epsilon `delta_o_rmsnorm_eps`.
        trainable_delta_scale: Multiply the corrections by a learned factor in (0, `delta_scale_max`) that starts at
            `delta_scale_init`. There is one factor for each `layer` or `head` (`delta_scale_granularity`).
        read_gate: Multiply the reads by a gate for each token and state head. It lets the memory stay silent. The
            reference does not have this field.
        key_shift: Add to the key of a token the memory query of the token written before it, multiplied by a learned
            factor for each number (`core/key_shift.py`, facts.md 8.3). The reference does not have this field.

    Raises:
        ValueError: A field has a value that is not allowed; the message names all such fields.
    """

    rank: int = option(8, rule=SIZE)
    alpha: float = option(16.0)
    beta_bias_init: float = option(-1.5)
    normalize_qk: bool = option(True)
    couple_lambda: bool = option(True)
    state_update_mode: str = option("standard", choices=("standard", "lambda_outside", "no_lambda"))
    rankwise_gates: bool = option(True)
    output_init: str = option("zero", choices=("zero", "random", "base_slice", "base_slice_fixed"))
    base_slice_ref_width: int = option(8, rule=POSITIVE)
    online_gain: float = option(0.05)
    num_state_heads: int = option(1, rule=SIZE)
    memory_write_granularity: str = option("token", choices=("token", "message_mean", "sentence_mean"))
    target_modules: tuple[str, ...] = option(("self_attn",), rule=_MODULES)
    target_layers: tuple[int, ...] = option((), rule=Rule(int, several=True, least=0, count="*", distinct=True))
    delta_heads: tuple[str, ...] = option(HEADS, choices=HEADS, count="*")
    delta_o_rmsnorm: bool = option(False)
    delta_o_rmsnorm_eps: float = option(1e-6, above=0)
    trainable_delta_scale: bool = option(False)
    delta_scale_init: float = option(1.0, above=0)
    delta_scale_max: float = option(2.0, above=0)
    delta_scale_granularity: str = option("layer", choices=("layer", "head"))
    delta_scale_parameterization: str = option("alpha_over_rank", choices=("alpha_over_rank",))
    read_gate: bool = option(False)
    key_shift: bool = option(False)

    def __post_init__(self) -> None:
        problems = []
        for each in options_of(self):
            given = getattr(self, each.name)
            value = _final(each.name, given)
            if each.rule.allows(value):
                object.__setattr__(self, each.name, float(value) if each.rule.kind is float else value)
            else:
                problems.append(f"{each.name} is {shown(given)}; expected {each.rule.expected}")
        if not problems and not self.delta_scale_init < self.delta_scale_max:
            problems.append(
                f"delta_scale_init is {self.delta_scale_init}; expected a number below delta_scale_max, "
                f"which is {self.delta_scale_max}"
            )
        raise_all(problems, _PREFIX)

    @property
    def width(self) -> int:
        """W = H * r, the width of all state heads side by side."""
        return self.rank * self.num_state_heads

    @property
    def variant(self) -> Variant:
        """The part of the configuration that the recurrence needs."""
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
        """The shape of a layer's state: `(H, r, r)`, or `(H, r + 1, r)` with a key shift.

        With a key shift, the last row is the memory query of the token written last.
        """
        return self.num_state_heads, self.rank + self.key_shift, self.rank

    @property
    def gate_width(self) -> int:
        """G, the number of values of each gate for one token: W or H."""
        return self.width if self.rankwise_gates else self.num_state_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DeltaMemConfig":
        """Make a configuration from the reference's fields. Missing fields take the defaults; inert ones are dropped.

        Raises:
            ValueError: A field is unknown, an archived field does not have its only value, or a value is not allowed.
        """
        names = [each.name for each in options_of(cls)]
        problems = problems_of_names(values.items(), names)
        # Any, because the constructor itself checks the types of the values.
        known: dict[str, Any] = {name: values[name] for name in names if name in values}
        try:
            config = cls(**known)
        except ValueError as error:
            problems.append(str(error).removeprefix(_PREFIX))
        raise_all(problems, _PREFIX)
        return config

    @classmethod
    def load(cls, path: str | Path) -> "DeltaMemConfig":
        """Read a `delta_mem_config.json`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not a JSON object, or `from_dict` refuses its fields. The message names the file.
        """
        path = Path(path)
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(
                f"{path} holds a JSON {type(values).__name__}; expected an object with the fields of δ-mem"
            )
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The text of a `delta_mem_config.json`. The reference reads it too, unless a field of `OWN_FIELDS` is true."""
        left_out = {name for name in OWN_FIELDS if not getattr(self, name)}
        values = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(values, indent=2) + "\n"


def _final(name: str, value: object) -> Any:
    """The value of a field in its final form, not yet checked: lists become tuples, the heads have one order."""
    if name == "delta_heads" and value in ("none", "", ["none"], ("none",)):
        # The reference also writes an empty list as `none`.
        return ()
    if not isinstance(value, list | tuple):
        return value
    if name == "delta_heads" and all(isinstance(head, str) and head in HEADS for head in value):
        return tuple(head for head in HEADS if head in value)
    return tuple(value)
