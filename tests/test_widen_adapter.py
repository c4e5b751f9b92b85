"""Adapters with a wider memory."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import attach, current_adapter, load_adapter, save_adapter
from mlx_deltamem.adapter import check_weights
from tests.conftest import distance, randomise
from tests.families import tiny_model
from tests.tool_runs import runner
from tests.training import CONFIG, same, toy_episodes, toy_model, toy_run, weights_of
from tools import widen_adapter
from tools.widen_adapter import MIXED_IN, widened

VARIANTS = [
    {},
    {"num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")},
    {"rankwise_gates": False, "num_state_heads": 2},
    {"couple_lambda": False, "normalize_qk": False, "target_layers": (1,)},
    {"memory_write_granularity": "message_mean", "trainable_delta_scale": True, "delta_o_rmsnorm": True},
    {"state_update_mode": "lambda_outside", "couple_lambda": False, "rankwise_gates": False},
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


def test_new_rows_are_as_long_as_the_old_ones_and_of_queries_and_keys_a_part_of_it():
    adapter = random_adapter()
    tensors = adapter.weights_by_layer()[0]
    for name, share in {"memory_q_proj": MIXED_IN, "memory_k_proj": MIXED_IN, "memory_v_proj": 1.0}.items():
        length = mx.linalg.norm(tensors[name], axis=1).mean() * share
        lengths = mx.linalg.norm(widened(adapter, 9).weights_by_layer()[0][name][4:], axis=1)
        assert distance(lengths, mx.full(5, length)) < 1e-5


def test_training_moves_all_that_is_new(tmp_path):
    model = tiny_model("llama")
    attach(model, widened(random_adapter(), 6))
    before = weights_of(model)
    toy_run(tmp_path / "run", model, iters=3, warmup=1).train(toy_episodes(6), toy_episodes(2))
    for name, weight in weights_of(model).items():
        new = (weight - before[name])[:, 4:] if "delta_" in name.rpartition(".")[2] else (weight - before[name])[4:]
        assert new.size == 0 or mx.abs(new).max() > 1e-6, name


def test_layers_are_left_out():
    adapter = random_adapter()
    wider = widened(adapter, 5, [1])
    assert wider.config.target_layers == (1,) and set(wider.weights_by_layer()) == {1}
    assert attach(tiny_model("llama"), wider) == ["model.layers.1.self_attn"]


def test_types_are_kept_and_seeds_tell():
    adapter = random_adapter()
    halves = replace(adapter, weights={name: weight.astype(mx.bfloat16) for name, weight in adapter.weights.items()})
    assert {weight.dtype for weight in widened(halves, 5).weights.values()} == {mx.bfloat16}
    assert same(widened(adapter, 5, seed=3).weights, widened(adapter, 5, seed=3).weights)
    assert not same(widened(adapter, 5, seed=3).weights, widened(adapter, 5, seed=4).weights)


def test_a_folder_is_made_that_tells_what_was_done(tmp_path, monkeypatch, capsys):
    source = replace(random_adapter(), metadata={"trained": "for tiny on toy", "changed": "weights stored as bfloat16"})
    save_adapter(source, tmp_path / "adapter")
    ended = runner(widen_adapter, monkeypatch, capsys)(
        tmp_path / "adapter", tmp_path / "wide", "--rank", 6, "--target-layers", 1
    )
    made = load_adapter(tmp_path / "wide")
    assert (ended.code, ended.errors) == (0, "")
    size = f"{made.parameters:,} parameters in 1 layers, 144 bytes of memory for each sequence"
    assert ended.output == f"Wrote {tmp_path / 'wide'}: {size}\n"
    assert made.metadata["trained"] == "for tiny on toy"
    assert made.metadata["changed"] == "weights stored as bfloat16, then widened to rank 6 in layer 1"
    assert same(made.weights, widened(source, 6, [1]).weights)


def test_what_cannot_be_widened_is_refused(tmp_path, monkeypatch, capsys):
    save_adapter(random_adapter(), tmp_path / "adapter")
    run = runner(widen_adapter, monkeypatch, capsys)
    for arguments, error in [
        (("--rank", 4), "adapter has 4; expected a larger one"),
        (("--rank", 2000), "rank is 2000, allowed is an integer, 1 to 1024"),
        (("--rank", 6, "--target-layers", 1, 2, 3), "has no memory in layers 2-3; name some of layers 0-1"),
    ]:
        ended = run(tmp_path / "adapter", tmp_path / "wide", *arguments)
        assert ended.code == 2 and ended.errors.startswith("error: ") and error in ended.errors
        assert not (tmp_path / "wide").exists()
    ended = run(tmp_path / "adapter", tmp_path, "--rank", 6)
    assert (ended.code, ended.errors) == (2, f"error: {tmp_path} exists already; delete it or name another folder\n")
    assert "no δ-mem adapter" in run(tmp_path, tmp_path / "wide", "--rank", 6).errors


def test_an_adapter_of_several_kinds_of_modules_is_refused():
    adapter = random_adapter()
    several = replace(adapter, config=replace(adapter.config, target_modules=("self_attn", "attention")))
    with pytest.raises(ValueError, match="is for modules named self_attn, attention; expected one name"):
        widened(several, 6)
