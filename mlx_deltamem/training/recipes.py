"""The recipes that the reference's authors trained their adapters with, as options of a run.

The numbers are those of their launch scripts (facts 3.5) and of the configuration that these write (facts 1.6); a text
is read with writes off (facts 3.3). Options that the reference does not have are as by default: `segment`,
`value_weight`, `tie_output`, `turn_by_turn`, and what is reported and kept on the way. Where the two trainers differ:

- A micro-batch of 1 on 8 GPUs, accumulated 4 times, is 32 episodes an update, each counting alike, however long its
  answer is. Here that is a batch of 1, accumulated 32 times: the same mean on one machine, in the least memory.
- An epoch of 2,219 records in updates of 32 is 70 updates, so 2,240 steps here: the last of them begin a second epoch.
  Of a data set of another size, it is not one epoch. The warm-up is a tenth of the updates, 7 of these.
- The reference makes an episode of each question. So questions about one history do not share a pass over it.
- bf16 is what the adapter is stored as; it is trained in float32, and the cosine ends at a hundredth of its rate.
- For SmolLM3 the scripts turn the gate's penalty off (facts 3.4). For other models than Qwen3, for which there are no
  scripts, the weight is Qwen3's.
"""

from dataclasses import asdict, dataclass, replace

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.sessions.writing import AFTER
from mlx_deltamem.training.episodes import EpisodeRules
from mlx_deltamem.training.loss import LossTerms
from mlx_deltamem.training.settings import Schedule

# What the authors' launch scripts name (facts 8.5).
PAPER_DATA = "huaXiaKyrie/delta-mem-qasper-data"
# The backbones without a penalty of the gate, by the model_type in their config.json.
_WITHOUT_PENALTY = ("smollm3",)
_ADAPTER = DeltaMemConfig(
    rank=8,
    alpha=16.0,
    beta_bias_init=-1.5,
    output_init="base_slice_fixed",
    base_slice_ref_width=8,
    online_gain=0.05,
    num_state_heads=1,
    memory_write_granularity="token",
    target_layers=(),
    delta_heads=("q", "o"),
)
_RULES = EpisodeRules(
    recent_messages=1,
    final_assistant_only=True,
    max_write_length=8192,
    max_seq_length=512,
    write=AFTER,
    questions_per_write=1,
)
_TERMS = LossTerms(sparsity=0.01, sparsity_target=0.05, sparsity_pass="read")
_SCHEDULE = Schedule(
    batch_size=1,
    grad_accumulation_steps=32,
    iters=70 * 32,
    learning_rate=2e-4,
    warmup=-1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    seed=42,
)


@dataclass(frozen=True)
class Recipe:
    """A run of the reference's authors.

    Attributes:
        adapter: The configuration of a new adapter.
        data: The data set on the Hub.
        rules: How chats become episodes.
        terms: What is minimised besides the cross-entropy, for Qwen3.
        schedule: How the run goes on.
        dtype: What the adapter's weights are stored as.
    """

    adapter: DeltaMemConfig
    data: str = PAPER_DATA
    rules: EpisodeRules = _RULES
    terms: LossTerms = _TERMS
    schedule: Schedule = _SCHEDULE
    dtype: str = "bfloat16"

    def options(self, model_type: str, new_adapter: bool = True) -> dict[str, object]:
        """The recipe as options: one level, the names of the command line.

        Args:
            model_type: Of the backbone, as in its config.json (`qwen3`, `smollm3` ...).
            new_adapter: Whether the run begins with a new adapter; else what shapes one is left out.
        """
        terms = replace(self.terms, sparsity=0.0) if model_type in _WITHOUT_PENALTY else self.terms
        options = {"data": self.data, **asdict(self.rules), **asdict(terms), **asdict(self.schedule)}
        return options | {"dtype": self.dtype} | (asdict(self.adapter) if new_adapter else {})


# By the names of the paper: a write for each token, for each message, and by four state heads (facts 1.8).
RECIPES = {
    "tsw": Recipe(_ADAPTER),
    "ssw": Recipe(replace(_ADAPTER, memory_write_granularity="message_mean")),
    "msw": Recipe(replace(_ADAPTER, num_state_heads=4)),
}


def find_recipe(name: object) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f"--recipe is {name!r}; expected {' or '.join(RECIPES)}")
    return RECIPES[name]
