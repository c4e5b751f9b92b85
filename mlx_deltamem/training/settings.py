"""The settings of a training run: those that decide the trained weights, and those of its reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from mlx_deltamem.adapters.names import PLACES
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.options.option import check_options, flag, option, taken_from
from mlx_deltamem.options.rule import COUNT, POSITIVE, SEED, Rule, shown
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.terms import LossTerms

# What to do with an unusable record.
ON_ERROR = ("stop", "skip")
# mlx-lm's optimizers; the first is the default.
OPTIMIZERS = ("adamw", "adam", "muon", "sgd", "adafactor")
WITHOUT_DECAY = ("adam",)
# The segment, in tokens, that `--grad-checkpoint` of mlx-lm stands for.
CHECKPOINTED = 1024
# The adapter that a run ends with.
LAST, BEST = KEEPS = ("last", "best")
# The configuration of a new adapter: the reference's released recipe (facts 3.5).
DEFAULT_ADAPTER = DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice_fixed")

# An error message lists at most this many options.
_LISTED = 5


@dataclass(frozen=True)
class Schedule:
    """The steps of a run and its optimizer.

    Raises:
        ValueError: A number is out of range, or the last steps would not fill an update.
    """

    batch_size: int = option(4, "Episodes per step, over all processes.", rule=POSITIVE)
    iters: int = option(1000, "Training steps.", rule=POSITIVE)
    learning_rate: float = option(2e-4, "Peak learning rate.", above=0)
    warmup: int = option(
        -1,
        "Updates of linear warm-up, before a cosine decay.",
        rule=Rule(int, least=0, other=(-1, "a tenth of all updates")),
    )
    weight_decay: float = option(0.0, "Weight decay; adam has none.", least=0)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.", above=0)
    grad_accumulation_steps: int = option(1, "Steps whose mean gradient makes one update.", rule=POSITIVE)
    value_weight: float = option(
        1.0,
        "Loss weight of the tokens of a record's value and of the token after it; other answer tokens have weight 1.",
        rule=Rule(float, least=1e-6, most=1e6),
    )
    tie_output: bool = option(
        False, "Start a new adapter so that a reply repeats what was written: the output head is the value projection."
    )
    fit: int = option(
        0,
        "Compute the first weights of a new adapter from what the frozen model does with its text in view, at this "
        "many questions of the training data that have a value; 0: random ones. It needs --key-shift.",
        rule=COUNT,
    )
    segment: int = option(
        0,
        "Checkpoint the gradient of the write pass per layer and this many tokens; 0: keep all activations.",
        rule=COUNT,
    )
    seed: int = option(0, "Seed of the first weights and of the order of the data.", rule=SEED)
    optimizer: str = option(OPTIMIZERS[0], "The optimizer.", OPTIMIZERS)

    def __post_init__(self) -> None:
        check_options(self)
        if self.fit and self.tie_output:
            raise ValueError("--fit and --tie-output both choose the first weights; leave one of them out")
        if self.weight_decay and self.optimizer in WITHOUT_DECAY:
            raise ValueError(
                f"--weight-decay is {self.weight_decay}, and {self.optimizer} has none; use --optimizer adamw, "
                "or leave the decay out"
            )
        if spare := self.iters % self.grad_accumulation_steps:
            below, above = self.iters - spare, self.iters - spare + self.grad_accumulation_steps
            raise ValueError(
                f"--iters is {self.iters}, and an update takes {self.grad_accumulation_steps} steps "
                f"(--grad-accumulation-steps); expected {f'{below} or ' if below else ''}{above}"
            )
        if self.warmup >= self.updates:
            raise ValueError(
                f"--warmup is {self.warmup}, and the run makes {self.updates} updates; expected fewer, so that the "
                "learning rate reaches its peak, or -1 for a tenth"
            )

    @property
    def updates(self) -> int:
        """The number of weight updates in the whole run."""
        return self.iters // self.grad_accumulation_steps

    @property
    def warmup_updates(self) -> int:
        """The number of updates of the warm-up."""
        if self.warmup >= 0:
            return self.warmup
        # The first update of a warm-up has a learning rate of 0. A run of one update must not begin with it.
        return -(-self.updates // 10) if self.updates > 1 else 0


@dataclass(frozen=True)
class Reporting:
    """The reports and checkpoints of a run. They have no effect on its steps.

    Raises:
        ValueError: A number is out of range.
    """

    steps_per_report: int = option(10, "Steps between reports.", rule=POSITIVE)
    steps_per_eval: int = option(200, "Steps between evaluations on the held-out data.", rule=POSITIVE)
    val_batches: int = option(25, "Held-out batches of an evaluation.", rule=Rule(int, least=1, other=(-1, "all")))
    test_batches: int = option(500, "With --test: the batches of the test.", rule=Rule(int, least=1, other=(-1, "all")))
    save_every: int = option(100, "Steps between checkpoints.", rule=POSITIVE)
    early_stopping: int = option(
        0,
        "End the run after this many evaluations in a row that are not the best so far, those before it was resumed "
        "included; 0: never.",
        rule=COUNT,
    )
    report_to: str | None = option(
        None,
        "Send the reports to these services too, as mlx_lm.lora does. They also get the options of the run.",
        rule=Rule(str, optional=True, choices=("wandb", "swanlab", "wandb,swanlab")),
    )
    project_name: str | None = option(None, "With --report-to: the name of the project there.")
    keep: str = option(
        LAST,
        "The adapter that the run ends with: the last one, or the healthy one with the most held-out answers right.",
        KEEPS,
    )
    health_texts: int = option(
        4,
        "Texts of plain English (at most 12) whose perplexity each evaluation compares with the frozen model's; the "
        "evaluation also prints a few replies; 0: no such check.",
        rule=COUNT,
    )
    health_limit: float = option(
        1.1,
        "An adapter is healthy if the perplexity of these texts is at most this many times the frozen model's: when "
        "they are written, and when they are read or written with another chat in the memory.",
        least=1,
    )
    dtype: str = option(
        "float32",
        "The dtype of the stored adapter weights; training uses float32.",
        ("float32", "bfloat16", "float16"),
    )

    def __post_init__(self) -> None:
        check_options(self)


# The groups of options, by their titles in the help text.
GROUPS = {"run": Schedule, "reports": Reporting, "episodes": EpisodeRules, "loss": LossTerms}


@dataclass(frozen=True)
class Settings:
    """The settings of a run that decide the trained weights.

    Attributes:
        model: The folder or Hub repo of the backbone.
        data: The folder or Hub data set with the records.
        start: The folder or Hub repo of the adapter to train further; "" for a new adapter.
        adapter: The configuration of a new adapter.
        rules: How chats become episodes.
        terms: The terms of the loss besides the cross-entropy.
        schedule: The steps and the optimizer.

    Raises:
        ValueError: The model or the data is missing.
    """

    model: str
    data: str
    start: str = ""
    adapter: DeltaMemConfig = DEFAULT_ADAPTER
    rules: EpisodeRules = field(default_factory=EpisodeRules)
    terms: LossTerms = field(default_factory=LossTerms)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"{flag(name)} is missing; expected a folder or a Hub repo")

    def flat(self) -> dict[str, object]:
        """Return the settings as one level of options, under their names on the command line.

        With `start`, the configuration of a new adapter is left out.
        """
        options: dict[str, object] = {}
        for name, value in asdict(self).items():
            if name != "adapter" or not self.start:
                options |= value if isinstance(value, dict) else {name: value}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    @classmethod
    def from_flat(cls, options: Mapping[str, object]) -> "Settings":
        """Make settings from options as `flat` returns them; missing options take their defaults.

        Raises:
            ValueError: A value is out of range, or an option shapes a new adapter although `start` is given.
        """
        model, data, start = (_place(options, name) for name in PLACES)
        schedule = taken_from(options, Schedule)
        new = {each.name: options[each.name] for each in fields(DeltaMemConfig) if each.name in options}
        shaping = [*new, *(name for name in ("tie_output", "fit") if getattr(schedule, name))]
        if start and shaping:
            more = f" and {len(shaping) - _LISTED} more" if len(shaping) > _LISTED else ""
            raise ValueError(
                f"{', '.join(map(flag, shaping[:_LISTED]))}{more} would shape a new adapter, and {start} has its own "
                "shape and weights; leave such options out, or leave out --start"
            )
        adapter = DeltaMemConfig.from_dict(asdict(DEFAULT_ADAPTER) | new)
        if not adapter.delta_heads:
            raise ValueError(
                "--delta-heads is empty, and such an adapter corrects nothing; name one or more of q, k, v, o"
            )
        rules, terms = taken_from(options, EpisodeRules), taken_from(options, LossTerms)
        return cls(model, data, start, adapter, rules, terms, schedule)


def _place(options: Mapping[str, object], name: str) -> str:
    value = options.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{flag(name)} is {shown(value)}; expected the name of a folder or of a Hub repo")
    return value
