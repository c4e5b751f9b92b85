"""Measure and report the model's health at each look at the held-out data."""

import math

from rich.markup import escape

from mlx_deltamem.evaluation.tasks.health import CARRIED_READ, CARRIED_WRITTEN, WAYS, WRITTEN, Answered, Checkup
from mlx_deltamem.training.metrics import Row
from mlx_deltamem.training.screen import tell

# Prompts that are replied to at each look.
PROMPTS = 3
# The ratios in the metrics, and on the screen.
RATIOS = {f"health_{way}": way for way in WAYS}
_WORDS = {WRITTEN: "written", CARRIED_READ: "carried and read", CARRIED_WRITTEN: "carried and written"}


def look(checkup: Checkup, limit: float) -> Row:
    """Measure the ratios of perplexities, let the model reply to its prompts, and tell both on the screen.

    Args:
        checkup: Of the model in training.
        limit: The largest ratio of a healthy adapter, for the screen.

    Returns:
        The ratios, for the metrics.
    """
    ratios = checkup.losses().ratios
    row = {name: ratios[way] for name, way in RATIOS.items()}
    described = ", ".join(f"{ratio:.3f} {_WORDS[way]}" for way, ratio in ratios.items())
    tell(f"perplexity ÷ frozen: {described}{'' if is_healthy(row, limit) else f' · not healthy, above {limit:g}'}")
    for answered in checkup.replies():
        tell(f"  {escape(_described(answered))}")
    return row


def largest_ratio(row: Row) -> float:
    """The largest ratio of a look; infinite where one is no number or none was measured."""
    ratios = [row.get(name) for name in RATIOS]
    return max(math.inf if ratio is None or math.isnan(ratio) else ratio for ratio in ratios)


def is_healthy(row: Row, limit: float) -> bool:
    """Whether no ratio of a look is above the limit."""
    return largest_ratio(row) <= limit


def _described(answered: Answered) -> str:
    reply = " ".join(answered.adapted.text.split()) or "(nothing)"
    return f"{answered.prompt} → {reply}{' (as the frozen model)' if answered.equal else ''}"
