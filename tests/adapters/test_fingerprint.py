"""The fingerprints of a model are made again whenever a part of them was replaced."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mlx_deltamem import DeltaMemConfig, attach, detach, load
from mlx_deltamem.adapters.fingerprint import adapter_fingerprint, backbone_fingerprint, origin_of
from tests.conftest import adapter, backbone, randomise


def found() -> tuple:
    model, tokenizer = load(backbone("qwen3-tiny"), adapter())
    origin = origin_of(model, tokenizer)
    assert origin == origin_of(model, tokenizer)
    assert (origin.backbone, origin.adapter) == (backbone_fingerprint(model), adapter_fingerprint(model))
    return model, tokenizer, origin


@pytest.mark.parametrize("part", ["adapter", "backbone"])
def test_a_replaced_weight_is_noticed(part):
    model, tokenizer, origin = found()
    attention = model.layers[0].self_attn
    if part == "adapter":
        attention.delta_mem.beta_bias = attention.delta_mem.beta_bias + 1
    else:
        model.model.norm.weight = model.model.norm.weight + 1
    changed = origin_of(model, tokenizer)
    assert getattr(changed, part) != getattr(origin, part)
    others = {"adapter": "backbone", "backbone": "adapter"}
    assert getattr(changed, others[part]) == getattr(origin, others[part])


def test_another_adapter_and_other_arguments_are_noticed():
    model, tokenizer, origin = found()
    detach(model)
    attach(model, DeltaMemConfig(rank=4))
    randomise(model, 0.1)
    assert origin_of(model, tokenizer).adapter != origin.adapter
    model.args.rope_theta += 1
    assert origin_of(model, tokenizer).backbone != origin.backbone


def test_weights_of_another_type_are_noticed():
    model, tokenizer, origin = found()
    model.update(tree_map(lambda weight: weight.astype(mx.float16), model.parameters()))
    changed = origin_of(model, tokenizer)
    assert changed.backbone != origin.backbone and changed.adapter != origin.adapter
