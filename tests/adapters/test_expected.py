"""Large tensors that a configuration does not have are refused by their shapes alone."""

import pytest

from mlx_deltamem.adapters.expected import check_expected
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.shapes import AttentionShape, parameter_shapes

CONFIG = DeltaMemConfig(rank=1024)
SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in parameter_shapes(CONFIG, AttentionShape(2048, 2048, 1024, 1024, 4096)).items()
}
NAME = "model.layers.0.self_attn.memory_k_proj"


def test_what_the_configuration_has_may_be_large():
    assert SHAPES[NAME] == (1024, 2048)
    check_expected("it", CONFIG, SHAPES)


@pytest.mark.parametrize(
    "changes",
    [
        {NAME: (1024, 2049)},
        {NAME: (1024, 2048, 1)},
        {NAME: (400_000_000,)},
        {"model.layers.0.self_attn.x": (400_000_000,)},
        {"x": (2000, 2000)},
        {"model.layers.9.self_attn.memory_k_proj": (1024, 2048)},
        {"model.layers.0.self_attn.delta_q_proj": (2**21, 1024)},
    ],
)
def test_other_large_tensors_are_refused(changes):
    with pytest.raises(ValueError, match="it does not fit: it has large tensors that are not of its configuration"):
        check_expected("it", CONFIG, {**SHAPES, **changes})


def test_small_ones_are_left_to_the_check_of_the_whole_adapter():
    check_expected("it", CONFIG, {**SHAPES, "x": (3,), "model.layers.0.self_attn.beta_bias": (5, 5)})
    check_expected("it", CONFIG, {"": (), "layers.0.self_attn.memory_q_proj": ()})
