"""The recipes that the reference's authors trained their adapters with, as options of a run.

The numbers are from the authors' launch scripts (facts 3.5) and from the configuration that these write (facts 1.6). A
text is read with writes off (facts 3.3). Options that the reference does not have keep their defaults. The two trainers
differ as follows:

- The reference accumulates a micro-batch of 1 on 8 GPUs over 4 steps. That is 32 episodes an update, with equal weights
  whatever the lengths of their answers. Here it is a batch of 1, accumulated over 32 steps: the same mean on one
  machine, with the least memory.
- An epoch of 2,219 records with 32 an update is 70 updates, so 2,240 steps here. The last of them begin a second epoch.
  For a data set of another size it is not one epoch. The warm-up is a tenth of the updates, 7 here.
- The reference makes an episode of each question, so questions about one history do not share a pass over it.
- The adapter is stored in bf16 but trained in float32, and the cosine ends at a hundredth of the peak rate.
- For SmolLM3 the scripts turn the penalty of the gate off (facts 3.4). For models other than Qwen3 and SmolLM3 there
  are no scripts; the penalty is then Qwen3's.
"""

from dataclasses import asdict, dataclass, replace

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.sessions.turns.writing import AFTER
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.settings import Schedule
from mlx_deltamem.training.terms import LossTerms

# The data set in the authors' launch scripts (facts 8.5).
PAPER_DATA = "huaXiaKyrie/delta-mem-qasper-data"
# The backbones without a penalty of the gate, by `model_type` in their config.json.
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
        rules: The rules for making episodes.
        terms: The terms of the loss besides the cross-entropy, for Qwen3.
        schedule: The steps and the optimizer.
        dtype: The dtype of the stored adapter weights.
    """

    adapter: DeltaMemConfig
    data: str = PAPER_DATA
    rules: EpisodeRules = _RULES
    terms: LossTerms = _TERMS
    schedule: Schedule = _SCHEDULE
    dtype: str = "bfloat16"

    def options(self, model_type: str, new_adapter: bool = True) -> dict[str, object]:
        """Return the recipe as one level of options, under their names on the command line.

        Args:
            model_type: The backbone's `model_type` in its config.json (`qwen3`, `smollm3` ...).
            new_adapter: Whether the run begins with a new adapter. If not, the adapter's configuration is left out.
        """
        terms = replace(self.terms, sparsity=0.0) if model_type in _WITHOUT_PENALTY else self.terms
        options = {"data": self.data, **asdict(self.rules), **asdict(terms), **asdict(self.schedule)}
        return options | {"dtype": self.dtype} | (asdict(self.adapter) if new_adapter else {})


# By the names of the paper: TSW writes each token, SSW each message, and MSW has four state heads (facts 1.8).
RECIPES = {
    "tsw": Recipe(_ADAPTER),
    "ssw": Recipe(replace(_ADAPTER, memory_write_granularity="message_mean")),
    "msw": Recipe(replace(_ADAPTER, num_state_heads=4)),
}


def find_recipe(name: object) -> Recipe:
    """Return the recipe with this name.

    Raises:
        ValueError: There is no such recipe.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f"--recipe is {name!r}; expected {' or '.join(RECIPES)}")
    return RECIPES[name]
