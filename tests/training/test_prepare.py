"""The first weights of new adapters."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import DeltaMemConfig
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.training.prepare import tie_output
from tests.conftest import distance
from tests.families import tiny_model
from tests.training.runs import CONFIG, frozen_of, same, toy_model, weights_of


@pytest.mark.parametrize("changes", [{}, {"num_state_heads": 2}, {"delta_heads": ("o",), "online_gain": 0.5}], ids=str)
def test_the_output_is_tied_to_the_values(changes):
    config = replace(CONFIG, **changes)
    model = toy_model(config)
    frozen, before = frozen_of(model), weights_of(model)
    tie_output(model)
    assert same(frozen_of(model), frozen)
    tied = ("memory_v_proj", "delta_o_proj")
    others = {name for name in before if not name.endswith(tied)}
    assert same({name: weights_of(model)[name] for name in others}, {name: before[name] for name in others})
    for attention in attached_attention(model).values():
        values, output = attention.delta_mem.memory_v_proj, attention.delta_mem.delta_o_proj
        assert values.shape == (config.rank * config.num_state_heads, 32)
        assert distance(output, values.T * config.online_gain) == 0
    first, second = (attention.delta_mem.memory_v_proj for attention in attached_attention(model).values())
    assert not mx.array_equal(first, second)


def test_the_rows_of_the_values_have_norm_1_on_average():
    model = toy_model(replace(CONFIG, rank=64))
    tie_output(model)
    for attention in attached_attention(model).values():
        assert abs(mx.linalg.norm(attention.delta_mem.memory_v_proj, axis=1).mean().item() - 1) < 0.1


def test_adapters_that_cannot_be_tied_are_refused():
    with pytest.raises(ValueError, match="delta_heads are q k; --tie-output needs o among them"):
        tie_output(toy_model(DeltaMemConfig(rank=4, delta_heads=("q", "k"))))
    with pytest.raises(ValueError, match="delta_heads are none; --tie-output needs o among them"):
        tie_output(toy_model(DeltaMemConfig(rank=4, delta_heads=())))
    with pytest.raises(ValueError, match="no adapter"):
        tie_output(tiny_model("llama"))
