"""Adapters with wider states, fewer layers, separate weights for λ, read gates or a key shift."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import attach, current_adapter
from mlx_deltamem.adapters.grow import MIXED_IN, uncoupled, widened, with_key_shift, with_layers, with_read_gates
from mlx_deltamem.core.adapter import check_weights
from tests.conftest import distance, randomise
from tests.families import tiny_model
from tests.training.runs import CONFIG, same, toy_episodes, toy_model, toy_run, weights_of

VARIANTS = [
    {},
    {"num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")},
    {"rankwise_gates": False, "num_state_heads": 2},
    {"couple_lambda": False, "normalize_qk": False, "target_layers": (1,)},
    {"memory_write_granularity": "message_mean", "trainable_delta_scale": True, "delta_o_rmsnorm": True},
    {"state_update_mode": "lambda_outside", "couple_lambda": False, "rankwise_gates": False},
    {"key_shift": True, "read_gate": True, "num_state_heads": 2},
]
TOKENS = mx.array([[5, 9, 33, 2, 17, 40, 8, 21, 60, 1, 7, 12]])


def random_adapter(**changes):
    model = toy_model(replace(CONFIG, **changes))
    randomise(model)
    return current_adapter(model)


def logits(adapter):
    model = tiny_model("llama")
    attach(model, adapter)
    return model(TOKENS)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_with_nothing_mixed_in_it_computes_what_it_did(changes):
    adapter = random_adapter(**changes)
    wider = widened(adapter, 7, mixed_in=0.0)
    check_weights(wider)
    assert (wider.config.rank, wider.config.alpha) == (7, adapter.config.alpha * 7 / 4)
    assert distance(logits(wider), logits(adapter)) < 1e-5
    assert distance(logits(adapter), tiny_model("llama")(TOKENS)) > 1e-2


def test_read_gates_are_almost_open_and_may_close():
    adapter = random_adapter(num_state_heads=2)
    gated = with_read_gates(adapter)
    check_weights(gated)
    before, after = logits(adapter), logits(gated)
    assert 0 < distance(after, before) < 0.2 * distance(tiny_model("llama")(TOKENS), before)
    shut = {name: mx.full(w.shape, -1e4) if "read_gate_bias" in name else w for name, w in gated.weights.items()}
    assert mx.array_equal(logits(replace(gated, weights=shut)), tiny_model("llama")(TOKENS))
    opened = {name: mx.full(w.shape, 1e4) if "read_gate_bias" in name else w for name, w in gated.weights.items()}
    assert distance(logits(replace(gated, weights=opened)), before) < 1e-6
    with pytest.raises(ValueError, match="already has read gates"):
        with_read_gates(gated)


def test_a_key_shift_of_0_changes_nothing_and_a_larger_one_does():
    adapter = random_adapter(num_state_heads=2)
    shifted = with_key_shift(adapter, 0.0)
    check_weights(shifted)
    assert {tensors["key_shift"].shape for tensors in shifted.weights_by_layer().values()} == {(8,)}
    before = logits(adapter)
    assert distance(logits(shifted), before) < 1e-6
    assert distance(logits(with_key_shift(adapter, 1.0)), before) > 1e-3
    with pytest.raises(ValueError, match="already has a key shift"):
        with_key_shift(shifted, 1.0)


def test_a_wider_key_shift_keeps_the_factors_of_each_state_head():
    adapter = random_adapter(key_shift=True, num_state_heads=2)
    wider = widened(adapter, 6)
    check_weights(wider)
    for layer, tensors in adapter.weights_by_layer().items():
        old, new = tensors["key_shift"].reshape(2, 4), wider.weights_by_layer()[layer]["key_shift"].reshape(2, 6)
        assert mx.array_equal(new[:, :4], old)
        assert distance(new[:, 4:], mx.repeat(old.mean(axis=1, keepdims=True), 2, axis=1)) < 1e-6


def test_what_was_learned_keeps_its_place_in_each_state_head():
    adapter = random_adapter(num_state_heads=2)
    wider = widened(adapter, 6)
    for layer, tensors in adapter.weights_by_layer().items():
        new = wider.weights_by_layer()[layer]
        for name in ("memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias"):
            rows, old = new[name].reshape(2, 6, -1), tensors[name].reshape(2, 4, -1)
            assert mx.array_equal(rows[:, :4], old)
            assert mx.abs(rows[:, 4:]).max() > 0
        columns = new["delta_o_proj"].reshape(-1, 2, 6)
        assert mx.array_equal(columns[..., :4], tensors["delta_o_proj"].reshape(-1, 2, 4))
        assert not columns[..., 4:].any()


@pytest.mark.parametrize("rank", [5, 16, 256])
def test_however_wide_it_is_most_of_what_it_did_is_left(rank):
    adapter, frozen = random_adapter(), tiny_model("llama")(TOKENS)
    before, after = logits(adapter) - frozen, logits(widened(adapter, rank)) - frozen
    assert mx.linalg.norm(after - before) < 0.5 * mx.linalg.norm(before)


def test_new_values_are_as_long_as_the_old_ones_and_new_queries_and_keys_a_part_of_it():
    adapter = random_adapter()
    tensors = adapter.weights_by_layer()[0]
    part = MIXED_IN * (4 / 5) ** 0.5
    for name, share in {"memory_q_proj": part, "memory_k_proj": part, "memory_v_proj": 1.0}.items():
        length = mx.linalg.norm(tensors[name], axis=1).mean() * share
        lengths = mx.linalg.norm(widened(adapter, 9).weights_by_layer()[0][name][4:], axis=1)
        assert distance(lengths, mx.full(5, length)) < 1e-5


def test_heads_of_projections_that_a_layer_does_not_have_stay_empty():
    adapter = random_adapter()
    empty = {name: mx.zeros((0, 4)) for name in adapter.weights if name.endswith(("delta_k_proj", "delta_v_proj"))}
    wider = widened(replace(adapter, weights=dict(adapter.weights) | empty), 6)
    assert {wider.weights[name].shape for name in empty} == {(0, 6)}


def test_training_moves_all_that_is_new(tmp_path):
    model = tiny_model("llama")
    attach(model, widened(random_adapter(), 6))
    before = weights_of(model)
    toy_run(tmp_path / "run", model, iters=3, warmup=1).train(toy_episodes(6), toy_episodes(2))
    for name, weight in weights_of(model).items():
        new = (weight - before[name])[:, 4:] if "delta_" in name.rpartition(".")[2] else (weight - before[name])[4:]
        assert new.size == 0 or mx.abs(new).max() > 1e-6, name


def test_layers_are_left_out():
    fewer = with_layers(random_adapter(), [1])
    assert fewer.config.target_layers == (1,) and set(fewer.weights_by_layer()) == {1}
    assert attach(tiny_model("llama"), fewer) == ["model.layers.1.self_attn"]


@pytest.mark.parametrize("changes", [each for each in VARIANTS if each.get("couple_lambda", True)], ids=str)
def test_a_lambda_of_its_own_begins_at_what_it_was(changes):
    adapter = random_adapter(**changes)
    free = uncoupled(adapter)
    check_weights(free)
    assert not free.config.couple_lambda
    assert distance(logits(free), logits(adapter)) < 1e-5


def test_training_parts_lambda_from_beta(tmp_path):
    model = tiny_model("llama")
    attach(model, uncoupled(random_adapter()))
    toy_run(tmp_path / "run", model, iters=3, warmup=1).train(toy_episodes(6), toy_episodes(2))
    for tensors in current_adapter(model).weights_by_layer().values():
        assert distance(tensors["lambda_proj"], -tensors["beta_proj"]) > 1e-4


def test_types_are_kept_and_seeds_tell():
    adapter = random_adapter()
    halves = replace(adapter, weights={name: weight.astype(mx.bfloat16) for name, weight in adapter.weights.items()})
    assert {weight.dtype for weight in widened(halves, 5).weights.values()} == {mx.bfloat16}
    assert same(widened(adapter, 5, seed=3).weights, widened(adapter, 5, seed=3).weights)
    assert not same(widened(adapter, 5, seed=3).weights, widened(adapter, 5, seed=4).weights)


def test_tensors_keep_the_names_of_their_modules():
    adapter = random_adapter()
    paths = {0: "block.self_attn", 1: "attention"}
    renamed = {
        f"model.layers.{layer}.{paths[layer]}.{name}": tensor
        for layer, tensors in adapter.weights_by_layer().items()
        for name, tensor in tensors.items()
    }
    config = replace(adapter.config, target_modules=("self_attn", "attention"))
    several = replace(adapter, config=config, weights=renamed)
    assert several.paths_by_layer() == paths
    for grown in (widened(several, 6), uncoupled(several), with_read_gates(several)):
        assert grown.paths_by_layer() == paths
        assert all(
            f".{paths[layer]}." in name for name in grown.weights for layer in (0, 1) if f"layers.{layer}." in name
        )
    assert with_layers(several, [1]).paths_by_layer() == {1: "attention"}


def test_a_grown_adapter_has_arrays_of_its_own():
    adapter = random_adapter()
    kept = {name: mx.array(weight) for name, weight in adapter.weights.items()}
    for change in (lambda: widened(adapter, 6), lambda: uncoupled(adapter), lambda: with_layers(adapter, [0])):
        for weight in change().weights.values():
            weight[:] = 7
    assert same(adapter.weights, kept)
