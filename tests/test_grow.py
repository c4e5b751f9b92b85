"""Adapters with wider states, in fewer layers, with a λ of their own."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import attach, current_adapter, load_adapter, save_adapter
from mlx_deltamem import grow as grow_adapter
from mlx_deltamem.core.adapter import check_weights
from mlx_deltamem.grow import MIXED_IN, uncoupled, widened, with_layers, with_read_gates
from tests.conftest import distance, randomise
from tests.families import tiny_model
from tests.tool_runs import runner
from tests.training.runs import CONFIG, same, toy_episodes, toy_model, toy_run, weights_of

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
    with pytest.raises(ValueError, match="read gates already"):
        with_read_gates(gated)


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


def test_a_folder_is_made_that_tells_what_was_done(tmp_path, monkeypatch, capsys):
    source = replace(random_adapter(), metadata={"trained": "for tiny on toy", "changed": "weights stored as bfloat16"})
    save_adapter(source, tmp_path / "adapter")
    ended = runner(grow_adapter, monkeypatch, capsys)(
        tmp_path / "adapter", tmp_path / "grown", "--rank", 6, "--target-layers", 1, "--no-couple-lambda", "--seed", 3
    )
    made = load_adapter(tmp_path / "grown")
    size = f"{made.parameters:,} parameters in layer 1, 144 bytes of memory for each sequence"
    assert (ended.code, ended.errors, ended.output) == (0, "", f"Wrote {tmp_path / 'grown'}: {size}\n")
    assert made.metadata["trained"] == "for tiny on toy"
    done = "kept in layer 1, then widened to rank 6, then given a λ of its own"
    assert made.metadata["changed"] == f"weights stored as bfloat16, then {done}"
    assert same(made.weights, uncoupled(widened(with_layers(source, [1]), 6, seed=3)).weights)


def test_what_cannot_be_done_is_refused(tmp_path, monkeypatch, capsys):
    save_adapter(random_adapter(), tmp_path / "adapter")
    save_adapter(random_adapter(couple_lambda=False), tmp_path / "free")
    save_adapter(random_adapter(state_update_mode="no_lambda"), tmp_path / "keeping")
    run = runner(grow_adapter, monkeypatch, capsys)
    for name, options, error in [
        ("adapter", (), "nothing is to be changed; give --rank, --target-layers, --no-couple-lambda or --read-gate"),
        ("adapter", ("--rank", 4), "adapter has 4; expected a larger one"),
        ("adapter", ("--target-layers", 1, "--seed", 1), "--seed is of the rows that are new with --rank"),
        ("adapter", ("--rank", 6, "--seed", 2**64), f"--seed is {2**64}; expected a whole number below 2**64"),
        ("adapter", ("--rank", 2000), "rank is 2000, allowed is an integer, 1 to 1024"),
        ("adapter", ("--target-layers", 1, 2, 3), "has no memory in layers 2-3; name some of layers 0-1"),
        ("free", ("--no-couple-lambda",), "has a λ of its own already"),
        ("keeping", ("--no-couple-lambda",), "keeps all of its state and has no λ"),
        ("", ("--rank", 6), "no δ-mem adapter"),
    ]:
        ended = run(tmp_path / name, tmp_path / "grown", *options)
        assert ended.code == 2 and ended.errors.startswith("error: ") and error in ended.errors
        assert ended.errors.count("\n") == 1 and not (tmp_path / "grown").exists()
    ended = run(tmp_path / "adapter", tmp_path, "--rank", 6)
    assert (ended.code, ended.errors) == (2, f"error: {tmp_path} exists already; delete it or name another folder\n")


def test_an_adapter_of_several_kinds_of_modules_is_refused():
    adapter = random_adapter()
    several = replace(adapter, config=replace(adapter.config, target_modules=("self_attn", "attention")))
    for change in (lambda: widened(several, 6), lambda: uncoupled(several), lambda: with_layers(several, [0])):
        with pytest.raises(ValueError, match="is for modules named self_attn, attention; expected one name"):
            change()
