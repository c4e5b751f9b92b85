"""What a text did to the memory, as tables."""

import numpy as np
from rich.console import RenderableType
from rich.markup import escape

from mlx_deltamem.inspection.model import ModelReport
from mlx_deltamem.inspection.tokens import visible
from mlx_deltamem.inspection.trace import Trace
from mlx_deltamem.sessions.drift import half_life
from mlx_deltamem.show.tables import columns, count, facts, number, span

_MOST_TOKENS = 10


def trace_tables(report: ModelReport) -> list[RenderableType]:
    """What a text did, by layer, and the tokens that were written most."""
    trace, granularity = report.trace, report.adapter.config["memory_write_granularity"]
    rows = {
        "file": report.text,
        "tokens": f"{len(trace.tokens):,}",
        "write gate β": f"{number(trace.write.mean())} in the mean, {span(trace.write.flatten())}",
        "keep": f"{number(trace.keep.mean())} in the mean: half is left after "
        f"{number(half_life(float(trace.keep.mean())))} tokens",
        "states": f"looked at after every {count(trace.places[0], 'tokens').removeprefix('1 ')}",
    }
    if granularity != "token":
        rows["written"] = f"token by token: it is no message, of which this adapter writes a {granularity}"
    return [facts("The text", rows), _layers(trace), _tokens(trace)]


def _layers(trace: Trace) -> RenderableType:
    title = "By layer: means over the tokens, and the state after the last one"
    headings = ("layer", "β", "keep", "half-life\n(tokens)", "‖S‖", "eff.\nrank", "‖Δo‖/‖o‖\nmean", "\nlargest")
    table = columns(title, *headings)
    for row, state in enumerate(trace.final):
        correction = None if trace.correction is None else trace.correction[row]
        table.add_row(
            str(state.layer),
            number(trace.write[row].mean()),
            number(trace.keep[row].mean()),
            number(half_life(float(trace.keep[row].mean()))),
            number(state.norm),
            number(float(np.mean(state.effective_rank))),
            number(None if correction is None else correction.mean()),
            number(None if correction is None else correction.max()),
        )
    return table


def _tokens(trace: Trace) -> RenderableType:
    means = trace.write.mean(axis=0)
    table = columns(
        "Written most (β, the mean over the layers)", "token", "place", "β", "highest β", "in layer", texts=(0,)
    )
    for place in np.argsort(-means, kind="stable")[:_MOST_TOKENS]:
        row = int(trace.write[:, place].argmax())
        table.add_row(
            escape(visible(trace.texts[place], trace.tokens[place])),
            str(place + 1),
            number(means[place]),
            number(trace.write[row, place]),
            str(trace.layers[row]),
        )
    return table
