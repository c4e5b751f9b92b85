"""What is to be known of a model with an adapter."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import get_total_parameters

from mlx_deltamem.core.adapter import Adapter
from mlx_deltamem.core.shapes import frozen_projections
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.model import attach_adapter, attached_attention
from mlx_deltamem.inspection.adapter import AdapterReport, adapter_report
from mlx_deltamem.inspection.trace import Trace


@dataclass(frozen=True)
class ModelReport:
    """What is to be known of a model with an adapter.

    Attributes:
        kind: "model".
        model: Its folder or repo.
        adapter: The adapter.
        attached: The names of the attention layers that have a memory.
        layers: How many layers the backbone has.
        backbone_parameters: How many numbers its weights are, whatever they are quantised to.
        share: The adapter's parameters in use, relative to those.
        strengths: By correction head (q, k, v, o) in use and by layer, the norm of the head's weights, scale included,
            relative to that of the frozen projection it corrects (both Frobenius). Not for `o` where
            `delta_o_rmsnorm` sets the size of the correction.
        text: The file of a text that was run, if one was.
        trace: What it did to the memory.
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


def attach_and_report(model: nn.Module, adapter: Adapter, name: str) -> ModelReport:
    """Attach an adapter to a frozen backbone and measure both.

    Args:
        model: The backbone; it has the adapter afterwards.
        adapter: The adapter.
        name: The model's folder or repo.

    Raises:
        ValueError: The adapter does not fit; every problem is listed.
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
    config = model.attachment.config
    heads = [head for head in config.delta_heads if not (head == "o" and config.delta_o_rmsnorm)]
    strengths: dict[str, dict[int, float]] = {head: {} for head in heads}
    for layer, attention in attached_attention(model).items():
        layer_memory: DeltaMemory = attention.delta_mem
        frozen = frozen_projections(attention, layer_memory.shape)
        for head in heads:
            correction = mx.linalg.norm(layer_memory.scaled_head(head))
            # Layer by layer, so that no more than one is dequantised at a time.
            strengths[head][layer] = (correction / mx.linalg.norm(frozen[head].astype(mx.float32))).item()
    return strengths
