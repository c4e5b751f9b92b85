"""Tokens as the labels of an axis: as many as there is room for, each at its place."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mlx_deltamem.inspection.tokens import visible
from mlx_deltamem.show.fonts import families_for
from mlx_deltamem.show.style import SMALL

_POINTS_PER_INCH = 72
# The width that an upright label takes, in sizes of its letters.
_SPACING = 1.2


def label_tokens(axes: Axes, texts: Sequence[str], tokens: Sequence[int], weights: np.ndarray) -> str:
    """Label an axis that counts tokens from 0 with the tokens.

    Where there is no room for all, those of the largest weights are labelled that leave room for each other.

    Args:
        axes: Its x axis is meant. The figure must be laid out already.
        texts, tokens: The tokens' texts and ids.
        weights: `[T]`, how much each deserves a label.

    Returns:
        What the axis shows, for its label.
    """
    inches = axes.get_window_extent().width / axes.figure.dpi
    per_token = inches * _POINTS_PER_INCH / max(1, np.ptp(axes.get_xlim()))
    places = _places(weights, least_gap=SMALL * _SPACING / per_token)
    labels = [visible(texts[place], tokens[place]) for place in places]
    families, missing = families_for(labels)
    labels = [f"#{tokens[p]}" if missing & set(label) else label for p, label in zip(places, labels, strict=True)]
    axes.set_xticks(places, labels, rotation=90, size=SMALL, family=families)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    some = f"; {len(places)} of {len(texts):,} are named, those written most" if len(places) < len(texts) else ""
    numbered = any(label == f"#{tokens[place]}" for place, label in zip(places, labels, strict=True))
    return f"tokens{some}" + ("; #: the id of one that cannot be drawn" if numbered else "")


def _places(weights: np.ndarray, least_gap: float) -> list[int]:
    """The places of the largest weights that are at least so far apart, in order."""
    free = np.ones(len(weights), bool)
    chosen = []
    for place in np.argsort(-weights, kind="stable"):
        if free[place]:
            chosen.append(int(place))
            near = int(np.ceil(least_gap)) - 1
            free[max(0, place - near) : place + near + 1] = False
    return sorted(chosen)
