"""What a training run is: everything that decides the weights it ends with."""

from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.training.best import KEEPS, LAST
from mlx_deltamem.training.episodes import EpisodeRules
from mlx_deltamem.training.loss import LossTerms
from mlx_deltamem.training.option import check_options, flag, option

PLACES = ("model", "data", "start")
# The adapter of the reference's released recipe (facts 3.5).
RECIPE = DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice_fixed")

# Of options, named in one message.
_FEW = 5
# Of MLX's random numbers.
_SEEDS = 2**64
Group = TypeVar("Group")


@dataclass(frozen=True)
class Schedule:
    """How a run goes on.

    Raises:
        ValueError: A number is out of range, or the last gradients would make up no update.
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
        check_seed(self.seed)
        if spare := self.iters % self.grad_accumulation_steps:
            below, above = self.iters - spare, self.iters - spare + self.grad_accumulation_steps
            raise ValueError(
                f"--iters is {self.iters}, and an update takes {self.grad_accumulation_steps} steps "
                f"(--grad-accumulation-steps); expected {f'{below} or ' if below else ''}{above}"
            )
        if self.warmup >= self.updates:
            raise ValueError(
                f"--warmup is {self.warmup}, and the run makes {self.updates} updates; expected fewer, so that the "
                "learning rate gets to where it is to go, or -1 for a tenth"
            )

    @property
    def updates(self) -> int:
        """Updates of the weights in the whole run."""
        return self.iters // self.grad_accumulation_steps

    @property
    def warmup_updates(self) -> int:
        if self.warmup >= 0:
            return self.warmup
        # The first update of a warm-up is of no length, and should not be the only one.
        return -(-self.updates // 10) if self.updates > 1 else 0


def check_seed(seed: int) -> None:
    """Raise ValueError where MLX has no random numbers for a seed."""
    if seed >= _SEEDS:
        raise ValueError(f"--seed is {seed}; expected a whole number below 2**64")


@dataclass(frozen=True)
class Reporting:
    """What a run tells and keeps on its way; it changes no weight in training.

    Raises:
        ValueError: A number is out of range.
    """

    steps_per_report: int = option(10, "Steps between reports.", least=1)
    steps_per_eval: int = option(200, "Steps between looks at the held-out data.", least=1)
    val_batches: int = option(25, "Batches of held-out data at each look; -1: all.", least=-1)
    save_every: int = option(100, "Steps between checkpoints.", least=1)
    keep: str = option(
        LAST,
        "The adapter that the run ends with: the last, or of the healthy ones the one that got most of the held-out "
        "data right.",
        choices=KEEPS,
    )
    health_texts: int = option(
        4,
        "At each look at the held-out data, the perplexity of so many texts (there are 12) is compared with the frozen "
        "model's, and a few prompts are replied to; 0: not.",
        least=0,
    )
    health_limit: float = option(
        1.1,
        "An adapter is healthy where the perplexity of these texts is at most so many times the frozen model's: "
        "written, and with another chat in the memory read, and written.",
        least=1,
    )
    dtype: str = option(
        "float32",
        "What the adapter's weights are stored as; they are trained in float32.",
        choices=("float32", "bfloat16", "float16"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.val_batches == 0:
            raise ValueError("--val-batches is 0; expected a whole number from 1 on, or -1 for all")


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

    Raises:
        ValueError: The model or the data is missing, or a name is no text.
    """

    model: str
    data: str
    start: str = ""
    adapter: DeltaMemConfig = RECIPE
    rules: EpisodeRules = field(default_factory=EpisodeRules)
    terms: LossTerms = field(default_factory=LossTerms)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        for name in PLACES:
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{flag(name)} is {value!r}; expected the name of a folder or of a Hub repo")
            if not value and name != "start":
                raise ValueError(f"{flag(name)} is missing; expected a folder or a Hub repo")

    def flat(self) -> dict[str, object]:
        """The settings as options: one level, the names of the command line. With `start`, those of the adapter are
        left out, since it brings its own."""
        options: dict[str, object] = {}
        for name, value in asdict(self).items():
            if name != "adapter" or not self.start:
                options |= value if isinstance(value, dict) else {name: value}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    @classmethod
    def from_flat(cls, options: dict[str, object]) -> "Settings":
        """The settings from `flat()`; what is not there has its default.

        Raises:
            ValueError: A value is out of range, or an option is for a new adapter and there is a `start`.
        """
        groups = {"rules": EpisodeRules, "terms": LossTerms, "schedule": Schedule}
        taken = {name: taken_from(options, kind) for name, kind in groups.items()}
        new = {each.name: options[each.name] for each in fields(DeltaMemConfig) if each.name in options}
        start = options.get("start", "")
        shaping = [*new, *(["tie_output"] if taken["schedule"].tie_output else [])]
        if start and shaping:
            more = f" and {len(shaping) - _FEW} more" if len(shaping) > _FEW else ""
            raise ValueError(
                f"{', '.join(map(flag, shaping[:_FEW]))}{more} would shape a new adapter, and {start} has its own "
                "shape and weights; leave such options out, or leave out --start"
            )
        adapter = DeltaMemConfig.from_dict({each.name: getattr(RECIPE, each.name) for each in fields(RECIPE)} | new)
        if not adapter.delta_heads:
            raise ValueError("--delta-heads names none, and such an adapter corrects nothing; name some of q, k, v, o")
        return cls(options.get("model", ""), options.get("data", ""), start, adapter, **taken)


def taken_from(options: dict[str, object], kind: type[Group]) -> Group:
    """A group of options; what is not there has its default."""
    return kind(**{each.name: options[each.name] for each in fields(kind) if each.name in options})
