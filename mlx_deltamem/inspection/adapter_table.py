"""An adapter, and a model with one, as tables."""

from rich.console import RenderableType

from mlx_deltamem.core.adapter import layer_list
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.inspection.adapter import AdapterReport, TensorReport
from mlx_deltamem.inspection.model import ModelReport
from mlx_deltamem.show.tables import by_layer, columns, count, facts, setting, span


def adapter_tables(report: AdapterReport) -> list[RenderableType]:
    """What is to be known of an adapter."""
    shape = "x".join(map(str, report.state_shape))
    unused = report.parameters - report.parameters_in_use
    rows = {
        "read from": f"{report.source} ({report.file})",
        "memory": f"{shape} float32 in {layer_list(report.layers)}: {report.state_bytes:,} bytes a sequence",
        "parameters": f"{report.parameters:,}" + (f", of which {unused:,} are not in use" if unused else ""),
        "weights": count(report.bytes, "bytes"),
        "without effect": _without_effect(report),
    }
    norms = {tensor.short_name: tensor.norms for tensor in report.tensors if tensor.in_use}
    return [
        facts("Adapter", rows),
        _config(report),
        _tensors(report),
        *by_layer("Norms (Frobenius) of the tensors in use", norms),
        facts("Provenance, as its file tells", report.metadata or {"(nothing)": ""}),
    ]


def model_tables(report: ModelReport) -> list[RenderableType]:
    """What is to be known of a model with an adapter, and of the adapter."""
    rows = {
        "model": f"{report.model}, {count(report.backbone_parameters, 'parameters')}",
        "fits": f"yes: {len(report.attached)} of {count(report.layers, 'layers')} have a memory",
        "attached to": _name_range(report.attached),
        "adapter": f"{report.adapter.parameters_in_use:,} parameters in use, {report.share:.4%} of the model's",
    }
    title = "Correction heads, relative to the projections they correct (norms)"
    strengths = {f"delta_{head}": by_layer for head, by_layer in report.strengths.items()}
    return [*adapter_tables(report.adapter), facts("Model and adapter", rows), *by_layer(title, strengths)]


def _without_effect(report: AdapterReport) -> str:
    """What of an adapter can have no effect, in words."""
    found = []
    if report.idle_layers:
        found.append(f"{layer_list(report.idle_layers)} (nothing read reaches the model)")
    by_heads: dict[tuple[int, ...], list[int]] = {}
    for layer, heads in report.idle_state_heads.items():
        if layer not in report.idle_layers:
            by_heads.setdefault(tuple(heads), []).append(layer)
    found += [f"state heads {', '.join(map(str, heads))} in {layer_list(in_)}" for heads, in_ in by_heads.items()]
    return "; ".join(found) or "nothing: every layer can steer the model"


def _config(report: AdapterReport) -> RenderableType:
    defaults = DeltaMemConfig()
    table = columns("Config (* differs from the reference's default)", "field", "value", "default", texts=(0, 1, 2))
    for name, value in report.config.items():
        differs = name in report.not_default
        default = setting(getattr(defaults, name)) if differs else ""
        table.add_row(f"{'*' if differs else ' '} {name}", setting(value), default, style="bold" if differs else None)
    return table


def _tensors(report: AdapterReport) -> RenderableType:
    headings = ("name", "shape", "type", "layers", "bytes", "norm", "")
    table = columns("Tensors (names within the layer)", *headings, texts=(0, 1, 2, 6))
    for tensor in report.tensors:
        table.add_row(
            tensor.short_name,
            "x".join(map(str, tensor.shape)),
            tensor.dtype,
            str(len(tensor.norms)),
            f"{tensor.bytes:,}",
            span(tensor.norms.values()),
            _note(tensor),
        )
    return table


def _note(tensor: TensorReport) -> str:
    if not tensor.in_use:
        return "not in use"
    if not tensor.zero_in:
        return ""
    return "zero" if len(tensor.zero_in) == len(tensor.norms) else f"zero in {layer_list(tensor.zero_in)}"


def _name_range(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
