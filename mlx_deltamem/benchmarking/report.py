"""The report of a benchmark: the measured models, the machine and the results, also as a JSON document."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_deltamem._version import __version__
from mlx_deltamem.benchmarking.dispatches import added_primitives
from mlx_deltamem.benchmarking.measure import PhaseComparison
from mlx_deltamem.benchmarking.models import DELTA_MEM, FROZEN, READ_ONLY, Models
from mlx_deltamem.benchmarking.paired import Ratio
from mlx_deltamem.core.model import current_adapter


@dataclass(frozen=True)
class Subject:
    """The model and the adapter that were measured.

    Attributes:
        model: The name of the model.
        model_bytes: The size of its weights.
        layers: The number of layers with a memory.
        adapter: The name of the adapter.
        rank, state_heads, delta_heads: Settings of the adapter, see `DeltaMemConfig`.
        adapter_parameters: The number of the adapter's parameters.
        state_bytes: The size of the memory of one sequence.
        primitives: By name, the primitives that each layer with a memory adds to the graph of a decode step, without
            views (see `added_primitives`).
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
        """Describe two models.

        Args:
            models: The models.
            model, adapter: The names of the model and the adapter.
        """
        attached = current_adapter(models.attached)
        weights = cast(list[tuple[str, mx.array]], tree_flatten(models.frozen.parameters()))
        return cls(
            model=model,
            model_bytes=sum(array.nbytes for _, array in weights),
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
class BenchmarkReport:
    """The results of a benchmark.

    Attributes:
        machine: The processor, the system and the versions.
        clock: The quantity for ratios of time: `wall_seconds` or `cpu_seconds`.
        subject: The model and the adapter.
        batch_size, generation_tokens, prefill_step_size, num_trials: The options of the command.
        comparisons: The measurements.
    """

    machine: str
    clock: str
    subject: Subject
    batch_size: int
    generation_tokens: int
    prefill_step_size: int
    num_trials: int
    comparisons: Sequence[PhaseComparison]

    def unclear(self) -> list[tuple[PhaseComparison, str, Ratio]]:
        """The ratios of time that differ from 1 by no more than the noise, each with its comparison and variant."""
        ratios = [
            (each, name, each.ratio(name, self.clock)) for each in self.comparisons for name in (DELTA_MEM, READ_ONLY)
        ]
        return [(each, name, ratio) for each, name, ratio in ratios if not ratio.is_clear]

    def as_document(self) -> dict[str, object]:
        """The report for `json.dumps`: its fields, with samples, throughput and ratios for each comparison."""
        return vars(self) | {
            "subject": asdict(self.subject),
            "comparisons": [_comparison_document(each) for each in self.comparisons],
        }


def clock() -> str:
    """The clock for ratios: wall time on a GPU, and processor time on a CPU, which other processes use too."""
    return "wall_seconds" if mx.default_device().type == mx.gpu else "cpu_seconds"


def machine() -> str:
    """The processor that MLX uses, the system and the versions."""
    device = mx.default_device()
    kind = "GPU" if device.type == mx.gpu else "CPU"
    versions = f"MLX {version('mlx')}, mlx-lm {version('mlx-lm')}, mlx_deltamem {__version__}"
    return f"{mx.device_info(device)['device_name']} ({kind}), {platform.system()} {platform.machine()}, {versions}"


def _comparison_document(comparison: PhaseComparison) -> dict[str, object]:
    return {
        "phase": comparison.phase,
        "prompt_tokens": comparison.prompt_tokens,
        "tokens": comparison.tokens,
        "variants": {name: _variant_document(comparison, name) for name in comparison.samples},
    }


def _variant_document(comparison: PhaseComparison, variant: str) -> dict[str, object]:
    document: dict[str, object] = {"tokens_per_second": asdict(comparison.tokens_per_second(variant))}
    for quantity in comparison.quantities:
        document[quantity] = comparison.values(variant, quantity)
        if variant != FROZEN:
            ratio = comparison.ratio(variant, quantity)
            numbers = asdict(ratio.quartiles) | {"noise": ratio.noise, "is_clear": ratio.is_clear}
            document[f"{quantity}_ratio"] = numbers
    return document
