"""What was measured beside the scores, summed up by condition."""

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_deltamem.evaluation.records import Row


@dataclass(frozen=True)
class Costs:
    """What a condition cost, and what the memory did under it. None: there was nothing of the kind.

    Attributes:
        prompt_tps, reply_tps: Tokens per second, read and generated, all questions side by side together.
        peak_memory: In bytes.
        beyond_window: How many prompts were longer than the model's window.
        write: The mean of β, the write gate, over layers and the tokens of histories that were written.
        norm: ‖S‖, the mean Frobenius norm of the layers' states just before a question.
        correction: ‖Δo‖ / ‖o‖, the mean over layers and the tokens of questions.
    """

    prompt_tps: float | None
    reply_tps: float | None
    peak_memory: int
    beyond_window: int
    write: float | None
    norm: float | None
    correction: float | None


def sum_up(rows: Iterable[Row]) -> Costs:
    """The costs of one condition from its measures."""
    rows = list(rows)

    def ratio(above: str, below: str) -> float | None:
        count = sum(row[below] for row in rows)
        return sum(row[above] for row in rows) / count if count else None

    return Costs(
        prompt_tps=ratio("prompt_tokens", "prompt_seconds"),
        reply_tps=ratio("reply_tokens", "reply_seconds"),
        peak_memory=max((row["peak_memory"] for row in rows), default=0),
        beyond_window=sum(row["beyond_window"] for row in rows),
        write=ratio("write", "written"),
        norm=ratio("norm", "prompts"),
        correction=ratio("correction", "corrected"),
    )
