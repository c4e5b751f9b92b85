"""The primitives of a decode step, counted in its graph: on the CPU, and on a GPU, which counting does not need."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import DeltaMemConfig, attach, read_only
from mlx_deltamem.benchmarking.dispatches import added_primitives
from tests.families import tiny_model
from tools.measure.fused_graph import count_fused

OPTIONS = [
    {},
    {"num_state_heads": 4},
    {"rankwise_gates": False, "couple_lambda": False},
    {"state_update_mode": "no_lambda"},
    {"state_update_mode": "lambda_outside", "normalize_qk": False},
]


def pair(family: str, bits: int | None, dtype: mx.Dtype, **options: object) -> tuple[nn.Module, nn.Module]:
    attached, frozen = tiny_model(family, bits), tiny_model(family, bits)
    for model in (attached, frozen):
        model.set_dtype(dtype)
    attach(attached, DeltaMemConfig(delta_heads=("q", "o"), **options))
    return attached, frozen


def added_on_cpu(*arguments: object) -> dict[str, float]:
    with mx.stream(mx.cpu):
        return added_primitives(*arguments)


# The reads of a layer: the projection, tanh, the state times the query, the norm, the quotient, and two corrections.
READS = 7
# The write of all layers: projections, gate biases and states put together, which only the first token needs for the
# last two; tanh, the state times the key, the norm, and the new states. Six more keep what a row or column of a state
# needs from being computed for each of its numbers: two gates, what is added, the key, the norm, and their joining.
WRITE = 13


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_on_the_cpu_adds_seven_to_each_layer_and_one_write(dtype, options):
    attached, frozen = pair("qwen3", None, dtype, **options)
    added = added_on_cpu(attached, frozen)
    assert sum(added.values()) <= READS + WRITE / len(attached.attachment.paths)
    assert added["AddMM"] == 2


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_oss", "qwen3_next", "olmo2"])
@pytest.mark.parametrize("bits", [None, 4])
def test_it_is_the_same_in_every_family_and_quantised(family, bits):
    attached, frozen = pair(family, bits, mx.bfloat16)
    for batch in (1, 3):
        added = added_on_cpu(attached, frozen, batch)
        assert sum(added.values()) == READS + WRITE / len(attached.attachment.paths)


def test_reading_only_adds_seven():
    attached, frozen = pair("qwen3", None, mx.bfloat16)
    with read_only(attached):
        assert sum(added_on_cpu(attached, frozen).values()) <= READS


def test_a_frozen_model_adds_nothing_and_has_no_layers_to_share_it():
    frozen = tiny_model("qwen3")
    with pytest.raises(ValueError, match="the model has no adapter"):
        added_primitives(frozen, frozen)


def added_when_fused(*arguments: object) -> dict[str, float]:
    try:
        return count_fused(lambda: added_primitives(*arguments))
    except RuntimeError as error:
        pytest.skip(f"this MLX adds no kernels without a GPU: {error}")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bits", [None, 4])
def test_a_step_on_a_gpu_adds_four(options, bits):
    models = pair("qwen3", bits, mx.bfloat16, **options)
    for batch in (1, 3):
        assert added_when_fused(*models, batch) == {"Matmul": 1, "CustomKernel": 1, "AddMM": 2}


def test_reading_only_on_a_gpu_adds_four():
    models = pair("qwen3", None, mx.bfloat16)
    with read_only(models[0]):
        assert added_when_fused(*models) == {"Matmul": 1, "CustomKernel": 1, "AddMM": 2}
