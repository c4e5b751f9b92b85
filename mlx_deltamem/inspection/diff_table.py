"""What two adapters or two chats differ in, as tables."""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.markup import escape

from mlx_deltamem.core.adapter import layer_list
from mlx_deltamem.inspection.diff import AdapterDiff, Parting, SessionDiff
from mlx_deltamem.inspection.distance import Comparison
from mlx_deltamem.show.tables import by_layer, columns, facts, number, setting, span


def adapter_diff_tables(diff: AdapterDiff) -> list[RenderableType]:
    """What two adapters differ in."""
    if diff.identical:
        return [
            facts("Identical adapters", _names(diff) | {"same": "config, and each tensor's name, type and numbers"})
        ]
    relative = {
        name.rpartition(".")[2]: {layer: distance.relative for layer, distance in each.distances.items()}
        for name, each in diff.tensors.items()
        if any(distance.relative for distance in each.distances.values())
    }
    return [
        facts("Two adapters", _names(diff)),
        *_fields("Config", diff.fields),
        _comparisons(diff),
        *by_layer("Relative distance by layer, of the tensors that differ", relative),
    ]


def session_diff_tables(diff: SessionDiff) -> list[RenderableType]:
    """What two chats differ in."""
    if diff.identical:
        return [facts("Identical chats", _names(diff) | {"same": "settings, texts, tokens and memory"})]
    rows = _names(diff) | {"texts": _parting(diff.parting), "same tokens": f"the first {diff.parting.shared_tokens:,}"}
    tables = [facts("Two chats", rows), *_fields("Settings, fingerprints and sizes", diff.fields)]
    table = columns("The memory by layer", "layer", "relative distance", "cosine")
    for layer, distance in diff.states.distances.items():
        table.add_row(str(layer), number(distance.relative), number(distance.cosine))
    return [*tables, table, *_incomparable(diff.states)]


def _names(diff: AdapterDiff | SessionDiff) -> dict[str, object]:
    return {"A": diff.a, "B": diff.b}


def _fields(title: str, fields: Mapping[str, tuple[object, object]]) -> list[RenderableType]:
    if not fields:
        return [facts(title, {"same": "in both"})]
    table = columns(title, "field", "A", "B", texts=(0, 1, 2))
    for name, values in fields.items():
        table.add_row(name, *(escape(setting(value)) for value in values))
    return [table]


def _comparisons(diff: AdapterDiff) -> RenderableType:
    table = columns("Tensors", "name", "differ in", "relative distance", "cosine", "notes", texts=(0, 1, 4))
    for name, each in diff.tensors.items():
        differing = [layer for layer, distance in each.distances.items() if distance.relative]
        table.add_row(
            name.rpartition(".")[2],
            layer_list(differing) if differing else "",
            span(each.distances[layer].relative for layer in differing) if differing else "",
            span(each.distances[layer].cosine for layer in differing) if differing else "",
            "; ".join(_reasons(each) + ([f"type {' and '.join(diff.types[name])}"] if name in diff.types else [])),
        )
    return table


def _incomparable(comparison: Comparison) -> list[RenderableType]:
    reasons = _reasons(comparison)
    return [facts("Not compared", dict.fromkeys(reasons, ""))] if reasons else []


def _reasons(comparison: Comparison) -> list[str]:
    """Why some layers were not compared."""
    by_misfit: dict[str, list[int]] = {}
    for layer, misfit in comparison.misfits.items():
        by_misfit.setdefault(misfit, []).append(layer)
    reasons = [f"{misfit} ({layer_list(layers)})" for misfit, layers in by_misfit.items()]
    for side, layers in (("A", comparison.only_in_a), ("B", comparison.only_in_b)):
        reasons += [f"only in {side} ({layer_list(layers)})"] if layers else []
    return reasons


def _parting(parting: Parting) -> str:
    turn = parting.shared_turns + 1
    return {
        None: f"the same, {parting.shared_turns} turns",
        "system prompt": "part at the system prompt",
        "a ends": f"A ends after turn {parting.shared_turns}, B goes on",
        "b ends": f"B ends after turn {parting.shared_turns}, A goes on",
    }.get(parting.where, f"part in turn {turn}, at its {parting.where}")
