"""What a benchmark found, with all that is needed to judge it, and as a JSON document."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten

from mlx_deltamem._version import __version__
from mlx_deltamem.benchmarking.dispatches import added_primitives
from mlx_deltamem.benchmarking.measure import Comparison
from mlx_deltamem.benchmarking.models import DELTA_MEM, FROZEN, READ_ONLY, Models
from mlx_deltamem.benchmarking.paired import Ratio
from mlx_deltamem.core.model import current_adapter


@dataclass(frozen=True)
class Subject:
    """What was measured.

    Attributes:
        model: The model's name.
        model_bytes: What its weights take.
        layers: How many of its layers have a memory.
        adapter: The adapter's name.
        rank, state_heads, delta_heads: Of the adapter.
        adapter_parameters: How many numbers it is.
        state_bytes: The size of the memory of one sequence.
        primitives: What each of its layers adds to the graph of a decode step, by name; those are left out that only
            look at the same numbers in another way.
    """

    model: str
    model_bytes: int
    layers: int
    adapter: str
    rank: int
    state_heads: int
    delta_heads: tuple[str, ...]
    adapter_parameters: int
    state_bytes: int
    primitives: dict[str, float]

    @classmethod
    def of(cls, models: Models, model: str, adapter: str) -> "Subject":
        """Look at two models, which have these names."""
        attached = current_adapter(models.attached)
        return cls(
            model=model,
            model_bytes=sum(array.nbytes for _, array in tree_flatten(models.frozen.parameters())),
            layers=len(attached.weights_by_layer()),
            adapter=adapter,
            rank=attached.config.rank,
            state_heads=attached.config.num_state_heads,
            delta_heads=attached.config.delta_heads,
            adapter_parameters=attached.parameters,
            state_bytes=attached.state_bytes,
            primitives=added_primitives(models.attached, models.frozen),
        )


@dataclass(frozen=True)
class Report:
    """The figures of a benchmark.

    Attributes:
        machine: The processor, the system and the versions.
        clock: The quantity that ratios of time are of: `wall_seconds` or `cpu_seconds`.
        subject: What was measured.
        batch_size, generation_tokens, prefill_step_size, num_trials: As asked for.
        comparisons: The measurements.
    """

    machine: str
    clock: str
    subject: Subject
    batch_size: int
    generation_tokens: int
    prefill_step_size: int
    num_trials: int
    comparisons: Sequence[Comparison]

    def unclear(self) -> list[tuple[Comparison, str, Ratio]]:
        """What the machine was too noisy for: the ratios of time that cannot be told from 1, and whose they are."""
        ratios = [
            (each, name, each.ratio(name, self.clock)) for each in self.comparisons for name in (DELTA_MEM, READ_ONLY)
        ]
        return [(each, name, ratio) for each, name, ratio in ratios if not ratio.is_clear]

    def as_document(self) -> dict[str, object]:
        """The report as `json.dumps` takes it: its fields, and for each comparison its samples and what they say."""
        return vars(self) | {
            "subject": asdict(self.subject),
            "comparisons": [_comparison_document(each) for each in self.comparisons],
        }


def clock() -> str:
    """The clock that tells most: the one on the wall for a GPU; on a CPU, which others use too, the processor's."""
    return "wall_seconds" if mx.default_device().type == mx.gpu else "cpu_seconds"


def machine() -> str:
    """The processor that MLX computes on, the system and the versions."""
    device = mx.default_device()
    kind = "GPU" if device.type == mx.gpu else "CPU"
    versions = f"MLX {mx.__version__}, mlx-lm {mlx_lm.__version__}, mlx_deltamem {__version__}"
    return f"{mx.device_info(device)['device_name']} ({kind}), {platform.system()} {platform.machine()}, {versions}"


def _comparison_document(comparison: Comparison) -> dict[str, object]:
    variants = {}
    for name in comparison.samples:
        variants[name] = {"tokens_per_second": asdict(comparison.tokens_per_second(name))}
        for quantity in comparison.quantities:
            variants[name][quantity] = comparison.values(name, quantity)
            if name != FROZEN:
                ratio = comparison.ratio(name, quantity)
                figures = asdict(ratio.quartiles) | {"noise": ratio.noise, "is_clear": ratio.is_clear}
                variants[name][f"{quantity}_ratio"] = figures
    return {
        "phase": comparison.phase,
        "prompt_tokens": comparison.prompt_tokens,
        "tokens": comparison.tokens,
        "variants": variants,
    }
