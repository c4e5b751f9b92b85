"""Weights that are changed in place: what a model computes is what it saves, and nobody else has the change."""

import copy

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_deltamem import attach, current_adapter
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.watched import Watched
from tests.conftest import distance
from tests.core.test_model import attached_model, random_ids
from tests.families import tiny_model

NAME = "delta_q_proj"


def first_memory(model) -> DeltaMemory:
    return model.layers[0].self_attn.delta_mem


def doubled(array: mx.array) -> None:
    array *= 2


def by_parameters(layer_memory: DeltaMemory) -> None:
    doubled(layer_memory.parameters()[NAME])


def by_attribute(layer_memory: DeltaMemory) -> None:
    layer_memory.delta_q_proj *= 2


def by_rows(layer_memory: DeltaMemory) -> None:
    layer_memory.delta_q_proj[:] = 2 * layer_memory.delta_q_proj


def by_key(layer_memory: DeltaMemory) -> None:
    layer_memory[NAME] *= 2


def by_another_array(layer_memory: DeltaMemory) -> None:
    layer_memory.update({NAME: 2 * layer_memory[NAME]})


CHANGES = {
    "attribute": by_attribute,
    "rows": by_rows,
    "key": by_key,
    "another array": by_another_array,
    "parameters": by_parameters,
    "get": lambda layer_memory: doubled(layer_memory.get(NAME)),
    "items": lambda layer_memory: doubled(dict(layer_memory.items())[NAME]),
    "values": lambda layer_memory: [doubled(value) for value in layer_memory.values()],
    "dict": lambda layer_memory: doubled(dict(layer_memory)[NAME]),
    "stars": lambda layer_memory: doubled({**layer_memory}[NAME]),
    "tree": lambda layer_memory: doubled(dict(tree_flatten(layer_memory))[NAME]),
}


def saved(model):
    """A model with the adapter that this one saves."""
    other = tiny_model("qwen3")
    attach(other, current_adapter(model))
    return other.eval()


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_computes_what_it_saves(change):
    model, ids = attached_model().eval(), random_ids()
    before = model(ids)
    packed = first_memory(model).packed_weights(mx.float32)
    CHANGES[change](first_memory(model))
    after = model(ids)
    assert distance(after, before) > 1e-3
    assert mx.array_equal(saved(model)(ids), after)
    assert first_memory(model).packed_weights(mx.float32) is not packed


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_weight_that_somebody_holds_may_change_at_any_time(calls):
    model, ids = attached_model().eval(), random_ids()
    held = first_memory(model).delta_q_proj
    before = [model(ids) for _ in range(calls + 1)][-1]
    held *= 2
    after = model(ids)
    assert distance(after, before) > 1e-3
    assert mx.array_equal(saved(model)(ids), after)
    del held
    first_memory(model).packed_weights(mx.float32)
    assert first_memory(model).packed_weights(mx.float32) is first_memory(model).packed_weights(mx.float32)


def test_a_change_in_place_stays_in_its_model():
    ids, adapter = random_ids(), current_adapter(attached_model())
    kept = {name: mx.array(weight) for name, weight in adapter.weights.items()}
    models = [tiny_model("qwen3").eval() for _ in range(2)]
    for model in models:
        attach(model, adapter)
    expected = [model(ids) for model in models]
    own = current_adapter(models[0])
    first_memory(models[0]).delta_q_proj *= 2
    assert distance(models[0](ids), expected[0]) > 1e-3
    assert mx.array_equal(models[1](ids), expected[1])
    for found in (adapter, own, current_adapter(models[1])):
        assert all(mx.array_equal(weight, kept[name]) for name, weight in found.weights.items())
    changed = models[0](ids)
    for found in (adapter, own):
        for weight in found.weights.values():
            doubled(weight)
    assert mx.array_equal(models[0](ids), changed)
    assert mx.array_equal(models[1](ids), expected[1])


def test_a_copy_is_watched_by_itself():
    module = Watched()
    module.weight = mx.ones(3)
    assert module.may_have_changed()
    assert module.watch()
    assert not module.may_have_changed()
    other = copy.deepcopy(module)
    assert other.may_have_changed() and other.watch()
    doubled(other.weight)
    assert other.may_have_changed()
    assert other["weight"].tolist() == [2, 2, 2] and module["weight"].tolist() == [1, 1, 1]
