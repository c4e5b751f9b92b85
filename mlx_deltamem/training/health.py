"""Measures the model's health during training, at each evaluation on the held-out data."""

import math

from rich.markup import escape

from mlx_deltamem.evaluation.tasks.health import CARRIED_READ, CARRIED_WRITTEN, WAYS, WRITTEN, Answered, Checkup
from mlx_deltamem.training.monitor import Row, print_below

# An evaluation replies to this many prompts.
PROMPTS = 3
# The conditions whose perplexity ratios are in the metrics, by the name there.
RATIOS = {f"health_{way}": way for way in WAYS}
_WORDS = {WRITTEN: "written", CARRIED_READ: "carried and read", CARRIED_WRITTEN: "carried and written"}


def measure_health(checkup: Checkup, limit: float) -> Row:
    """Measure the perplexity ratios, generate the replies, and print both.

    Args:
        checkup: The checkup of the trained model.
        limit: The largest ratio of a healthy adapter, for the printed line.

    Returns:
        The ratios, under their names in the metrics.
    """
    ratios = checkup.losses().ratios
    row: Row = {name: ratios[way] for name, way in RATIOS.items()}
    described = ", ".join(f"{ratio:.3f} {_WORDS[way]}" for way, ratio in ratios.items())
    verdict = "" if is_healthy(row, limit) else f" · not healthy, above {limit:g}"
    print_below(f"perplexity ÷ frozen: {described}{verdict}")
    for answered in checkup.replies():
        print_below(f"  {escape(_described(answered))}")
    return row


def largest_ratio(row: Row) -> float:
    """Return the largest ratio of an evaluation; infinity if a ratio is missing or is not a number."""
    ratios = [row.get(name) for name in RATIOS]
    return max(math.inf if ratio is None or math.isnan(ratio) else ratio for ratio in ratios)


def is_healthy(row: Row, limit: float) -> bool:
    """Whether all ratios of an evaluation are within the limit."""
    return largest_ratio(row) <= limit


def _described(answered: Answered) -> str:
    reply = " ".join(answered.adapted.text.split()) or "(nothing)"
    return f"{answered.prompt} → {reply}{' (as the frozen model)' if answered.equal else ''}"
