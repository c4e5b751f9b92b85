"""What a training run is: everything that decides the weights it ends with."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from mlx_deltamem.config import DeltaMemConfig
from mlx_deltamem.files import new_file
from mlx_deltamem.training.episodes import EpisodeRules
from mlx_deltamem.training.loss import LossTerms
from mlx_deltamem.training.option import check_options, option

SETTINGS_FILE = "train_config.yaml"
# The adapter of the reference's released recipe (facts 3.5).
RECIPE = DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice_fixed")


@dataclass(frozen=True)
class Schedule:
    """How a run goes on.

    Raises:
        ValueError: A number is out of range.
    """

    batch_size: int = option(4, "Episodes per step, over all processes.", least=1)
    iters: int = option(1000, "Steps.", least=1)
    learning_rate: float = option(2e-4, "Highest learning rate of AdamW.", above=0)
    warmup: int = option(-1, "Updates in which the learning rate rises, before a cosine; -1: a tenth.", least=-1)
    weight_decay: float = option(0.0, "Weight decay of AdamW.", least=0)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.", above=0)
    grad_accumulation_steps: int = option(1, "Steps whose gradients make up one update.", least=1)
    value_weight: float = option(1.0, "Weight of the tokens of a record's value; other answer tokens have 1.", above=0)
    tie_output: bool = option(False, "Start a new adapter so that it leans towards repeating what was written.")
    segment: int = option(0, "Checkpoint the write pass by layer and by so many tokens; 0: keep activations.", least=0)
    seed: int = option(0, "Decides the first weights and the order of the data.", least=0)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def updates(self) -> int:
        """Updates of the weights in the whole run."""
        return max(self.iters // self.grad_accumulation_steps, 1)

    @property
    def warmup_updates(self) -> int:
        return self.warmup if self.warmup >= 0 else -(-self.updates // 10)


@dataclass(frozen=True)
class Reporting:
    """What a run tells on its way; it changes no weight."""

    steps_per_report: int = option(10, "Steps between reports.", least=1)
    steps_per_eval: int = option(200, "Steps between looks at the held-out data.", least=1)
    val_batches: int = option(25, "Batches of held-out data at each look; -1: all.", least=-1)
    save_every: int = option(100, "Steps between checkpoints.", least=1)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Settings:
    """A run.

    Attributes:
        model: Folder or Hub repo of the backbone.
        data: Folder or Hub data set.
        start: Folder or Hub repo of the adapter to go on from; "" starts a new one.
        adapter: The configuration of a new adapter.
        rules: How chats become episodes.
        terms: What is minimised besides the cross-entropy.
        schedule: How the run goes on.
    """

    model: str
    data: str
    start: str = ""
    adapter: DeltaMemConfig = RECIPE
    rules: EpisodeRules = field(default_factory=EpisodeRules)
    terms: LossTerms = field(default_factory=LossTerms)
    schedule: Schedule = field(default_factory=Schedule)

    def save(self, folder: Path) -> None:
        """Write the settings into a run's folder."""
        with new_file(folder / SETTINGS_FILE) as path:
            path.write_text(yaml.safe_dump(self.flat(), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def flat(self) -> dict[str, object]:
        """The settings as options: one level, the names of the command line."""
        options: dict[str, object] = {}
        for name, value in asdict(self).items():
            options |= value if isinstance(value, dict) else {name: value}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    @classmethod
    def from_flat(cls, options: dict[str, object]) -> "Settings":
        """The settings from `flat()`.

        Raises:
            ValueError: A value is out of range.
        """
        groups = {"rules": EpisodeRules, "terms": LossTerms, "schedule": Schedule}
        taken = {
            name: kind(**{each.name: options[each.name] for each in fields(kind) if each.name in options})
            for name, kind in groups.items()
        }
        adapter = {each.name: options.get(each.name, getattr(RECIPE, each.name)) for each in fields(DeltaMemConfig)}
        plain = {name: options[name] for name in ("model", "data", "start") if name in options}
        return cls(**plain, adapter=DeltaMemConfig.from_dict(adapter), **taken)
