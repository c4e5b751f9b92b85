"""The colour, the line and the marker of each condition in the figures."""

from mlx_deltamem.evaluation.baselines.baseline import Kind, find_baseline
from mlx_deltamem.show.style import BLUE, GREEN, GREY, VERMILLION, LineStyle

# More of Okabe and Ito's colours.
_ORANGE, _SKY, _PURPLE, _BROWN = "#E69F00", "#56B4E9", "#CC79A7", "#8C564B"


# Lines are solid with the history in the text, dashed with the history in the memory, and dotted for controls.
_STYLES: dict[str, LineStyle] = {
    "base": {"color": "black", "linestyle": "-", "marker": "o"},
    "full": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "replay": {"color": _SKY, "linestyle": "-", "marker": "D"},
    "state": {"color": VERMILLION, "linestyle": "--", "marker": "^"},
    "none": {"color": GREY, "linestyle": ":", "marker": "v"},
    "zeroed": {"color": GREEN, "linestyle": ":", "marker": "x"},
    "shuffled": {"color": _PURPLE, "linestyle": ":", "marker": "P"},
    "chat": {"color": _ORANGE, "linestyle": "-.", "marker": "*"},
}
# Chats that keep some of their text (`chat-256` and the like).
_CHAT_WITH_TEXT: LineStyle = {"color": _BROWN, "linestyle": "-.", "marker": "h"}
# A baseline has the colour and the marker of its kind; beside a memory, the line of `state`.
_BASELINES: dict[Kind, LineStyle] = {
    Kind.LAST: {"color": "#117733", "linestyle": "-", "marker": "<"},
    Kind.BM25: {"color": "#332288", "linestyle": "-", "marker": "p"},
    Kind.DENSE: {"color": "#AA4499", "linestyle": "-", "marker": "d"},
    Kind.ORACLE: {"color": "#882255", "linestyle": "-", "marker": "X"},
    Kind.SUMMARY: {"color": "#999933", "linestyle": "-", "marker": ">"},
}


def style_of(condition: str) -> LineStyle:
    """The style of a condition, by its name."""
    text, _, beside = condition.partition("+")
    if (baseline := find_baseline(text)) is None:
        return _STYLES.get(condition, _CHAT_WITH_TEXT)
    style = _BASELINES[baseline.kind]
    return {**style, "linestyle": _STYLES[beside]["linestyle"]} if beside in _STYLES else style
