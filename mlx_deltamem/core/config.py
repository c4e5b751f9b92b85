"""The configuration of a δ-mem adapter: the fields of the reference's `delta_mem_config.json` that it uses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlx_deltamem.core.fields import HEADS, problems_of_fields, problems_of_names
from mlx_deltamem.recurrence.gates import Variant

CONFIG_FILE = "delta_mem_config.json"
# Fields that the reference does not have. It refuses them by name, so a file has them only where they are true.
OWN_FIELDS = ("read_gate", "key_shift")

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
        parsed, problems = problems_of_fields((field.name, getattr(self, field.name)) for field in fields(self))
        for name, value in parsed.items():
            object.__setattr__(self, name, value)
        if not problems and not self.delta_scale_init < self.delta_scale_max:
            problems.append(
                f"delta_scale_init is {self.delta_scale_init}, allowed is a number below delta_scale_max, "
                f"which is {self.delta_scale_max}"
            )
        _raise_all(problems)

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
        problems = problems_of_names(values.items())
        # Any, because the constructor itself checks the types of the values.
        known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls) if field.name in values}
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
            FileNotFoundError: The file does not exist.
            ValueError: The file is not a JSON object, or `from_dict` refuses its fields. The message names the file.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}); expected the config of a δ-mem adapter") from None
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


def _raise_all(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(_PREFIX + "; ".join(problems))
