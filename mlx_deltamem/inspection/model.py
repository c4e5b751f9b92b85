"""The facts about a model with an adapter: their sizes, and the strengths of the corrections."""

import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import get_total_parameters
from rich.console import RenderableType

from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attach_adapter, attached_attention
from mlx_deltamem.core.shapes import frozen_projections
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.inspection.adapter import AdapterReport, adapter_report
from mlx_deltamem.inspection.perplexity import Perplexities
from mlx_deltamem.inspection.trace import Trace
from mlx_deltamem.show.plot import LayerCharts
from mlx_deltamem.show.tables import by_layer, count, facts


@dataclass(frozen=True)
class ModelReport:
    """The facts about a model with an adapter.

    Attributes:
        kind: "model".
        model: The folder or Hub repo of the model.
        adapter: The report on the adapter.
        attached: The names of the attention layers that have a memory.
        layers: The number of layers of the backbone.
        backbone_parameters: The number of weights of the backbone. Quantisation does not change it.
        share: The number of the adapter's parameters in use, relative to `backbone_parameters`.
        strengths: By correction head (q, k, v, o) in use and by layer, the Frobenius norm of the head's weights, scale
            included, relative to the norm of the frozen projection that it corrects. Not for `o` with
            `delta_o_rmsnorm`, because the norm then decides the size of the correction.
        text: The file of the text that was run through the model, if there was one.
        trace: The effect of that text on the memory.
        perplexity: How well the model predicts that text, beside the frozen model; None without a text, or if the text
            is one token.
    """

    kind: str
    model: str
    adapter: AdapterReport
    attached: list[str]
    layers: int
    backbone_parameters: int
    share: float
    strengths: dict[str, dict[int, float]]
    text: str | None = None
    trace: Trace | None = None
    perplexity: Perplexities | None = None

    @property
    def title(self) -> str:
        """The names of the adapter and the model."""
        return f"{Path(self.adapter.source).name} on {Path(self.model).name}"

    @property
    def trace_title(self) -> str:
        """The names of the adapter, the model and the text."""
        return f"{self.title}, reading {Path(str(self.text)).name}"

    def tables(self) -> list[RenderableType]:
        """The report as tables: the adapter, the model, and the trace if there is one."""
        names = self.attached
        rows = {
            "model": f"{self.model}, {count(self.backbone_parameters, 'parameters')}",
            "fits": f"yes: {len(names)} of {count(self.layers, 'layers')} have a memory",
            "attached to": names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}",
            "adapter": f"{self.adapter.parameters_in_use:,} parameters in use, {self.share:.4%} of the model's",
        }
        title = "Correction heads, relative to the projections they correct (norms)"
        tables = [*self.adapter.tables(), facts("Model and adapter", rows), *by_layer(title, self._strengths_by_name)]
        if self.trace is None:
            return tables
        tables += self.trace.tables(str(self.text), str(self.adapter.config["memory_write_granularity"]))
        return tables if self.perplexity is None else [*tables, self.perplexity.table()]

    def charts(self) -> LayerCharts:
        """The content of the figure without a trace: the strengths of the corrections."""
        return LayerCharts(
            f"{self.title}: correction heads relative to the projections they correct",
            "relative norm",
            self._strengths_by_name,
            nothing="The adapter has no correction with a strength that its weights decide.",
        )

    @property
    def _strengths_by_name(self) -> dict[str, dict[int, float]]:
        return {f"delta_{head}": strengths for head, strengths in self.strengths.items()}


def attach_and_report(model: nn.Module, adapter: Adapter, name: str) -> ModelReport:
    """Attach an adapter to a backbone and measure both.

    Args:
        model: The backbone; the adapter stays attached to it.
        adapter: The adapter.
        name: The folder or Hub repo of the model.

    Raises:
        ValueError: The adapter does not fit; the error lists all problems.
    """
    parameters = get_total_parameters(model)
    attached = attach_adapter(model, adapter)
    of_adapter = adapter_report(adapter)
    return ModelReport(
        kind="model",
        model=name,
        adapter=of_adapter,
        attached=attached,
        layers=len(model.layers),
        backbone_parameters=parameters,
        share=of_adapter.parameters_in_use / parameters,
        strengths=_strengths(model),
    )


def _strengths(model: nn.Module) -> dict[str, dict[int, float]]:
    config = attachment_of(model).config
    heads = [head for head in config.delta_heads if not (head == "o" and config.delta_o_rmsnorm)]
    strengths: dict[str, dict[int, float]] = {head: {} for head in heads}
    for layer, attention in attached_attention(model).items():
        layer_memory: DeltaMemory = attention.delta_mem
        frozen = frozen_projections(attention, layer_memory.shape)
        for head in heads:
            correction = _norm(layer_memory.scaled_head(head))
            # Each projection is dequantised only here, so that memory holds one of them at a time.
            size = _norm(frozen[head])
            strengths[head][layer] = correction / size if size else math.nan
    return strengths


def _norm(weights: mx.array) -> float:
    """The Frobenius norm, computed by MLX: the weights of a backbone are large."""
    return float(np.array(mx.linalg.norm(weights.astype(mx.float32))))
