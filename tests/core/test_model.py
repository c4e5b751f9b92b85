import copy
from contextlib import nullcontext
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gpt2
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_deltamem import (
    DeltaMemConfig,
    attach,
    current_adapter,
    detach,
    load,
    make_prompt_cache,
    memory,
    read_only,
    set_memory,
    with_draft,
    write_mask,
    write_spans,
)
from mlx_deltamem.core.use import memory_off
from tests.conftest import adapter, backbone, distance, randomise
from tests.families import FAMILIES, fits, tiny_model

TOKENS = 17
CONFIGS = {"TSW": DeltaMemConfig(), "MSW": DeltaMemConfig(rank=4, num_state_heads=2)}
# The layers that get a memory, for families in which some layers have none.
ATTACHED = {"qwen3_next": [1, 3]}

every_family = pytest.mark.parametrize("family", FAMILIES)
quantised = pytest.mark.parametrize("bits", [None, 4, 8])


def random_ids(rows: int = 2, length: int = TOKENS) -> mx.array:
    return mx.random.randint(0, 64, (rows, length))


def attached_model(
    family: str = "qwen3", config: DeltaMemConfig = CONFIGS["TSW"], bits: int | None = None
) -> nn.Module:
    model = tiny_model(family, bits)
    attach(model, config)
    randomise(model, 0.15)
    return model


@every_family
@quantised
def test_a_new_adapter_changes_nothing_and_detaching_gives_the_backbone_back(family, bits):
    model = tiny_model(family, bits)
    ids = random_ids()
    parameters = dict(tree_flatten(model.parameters()))
    frozen_class, frozen = type(model), model(ids)
    names = attach(model, DeltaMemConfig())
    layers = ATTACHED.get(family, list(range(len(model.layers))))
    assert [int(name.split("layers.")[1].split(".")[0]) for name in names] == layers
    cache = make_prompt_cache(model)
    assert mx.array_equal(model(ids, cache=cache), frozen)
    assert list(memory(cache)) == layers
    assert all(state.any() for state in memory(cache).values())
    detach(model)
    assert type(model) is frozen_class
    assert mx.array_equal(model(ids), frozen)
    assert all(parameters[name] is value for name, value in tree_flatten(model.parameters()))
    assert len(parameters) == len(tree_flatten(model.parameters()))


@every_family
def test_an_empty_memory_that_is_only_read_changes_nothing(family):
    model = tiny_model(family)
    ids = random_ids()
    frozen = model(ids)
    attach(model, DeltaMemConfig())
    randomise(model)
    with read_only(model):
        assert mx.array_equal(model(ids, cache=make_prompt_cache(model)), frozen)
    assert distance(model(ids, cache=make_prompt_cache(model)), frozen) > 0.1


@every_family
@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_one_by_one_in_chunks_at_once_and_padded_are_the_same(family, kind):
    model = attached_model(family, CONFIGS[kind])
    ids = random_ids()
    whole_cache = make_prompt_cache(model)
    whole = model(ids, cache=whole_cache)
    for borders in ([0, 5, 6, TOKENS], range(TOKENS + 1)):
        cache = make_prompt_cache(model)
        parts = [model(ids[:, a:b], cache=cache) for a, b in pairwise(borders)]
        assert distance(mx.concatenate(parts, axis=1), whole) <= 1e-4
        assert_same_memory(cache, whole_cache)
    assert distance(model(ids), whole) <= 1e-4
    padding = [0, 4]
    ragged = mx.stack([ids[0], mx.concatenate([mx.zeros(4, ids.dtype), ids[1, :-4]])])
    padded_cache = make_prompt_cache(model, left_padding=padding)
    first, second = model(ragged[:, :9], cache=padded_cache), model(ragged[:, 9:], cache=padded_cache)
    padded = mx.concatenate([first, second], axis=1)
    for row, pad in enumerate(padding):
        alone_cache = make_prompt_cache(model)
        alone = model(ids[row : row + 1, : TOKENS - pad], cache=alone_cache)
        assert distance(padded[row : row + 1, pad:], alone) <= 1e-4
        for layer, state in memory(alone_cache).items():
            assert distance(memory(padded_cache)[layer][row : row + 1], state) <= 1e-4


def assert_same_memory(cache: list, other: list) -> None:
    for layer, state in memory(cache).items():
        assert distance(state, memory(other)[layer]) <= 1e-4


@every_family
@quantised
def test_activations_keep_their_dtype(family, bits):
    model = tiny_model(family, bits)
    model.set_dtype(mx.bfloat16)
    ids = random_ids()
    dtype = model(ids).dtype
    attach(model, DeltaMemConfig())
    randomise(model)
    cache = make_prompt_cache(model)
    assert model(ids, cache=cache).dtype == dtype
    assert all(state.dtype == mx.float32 for state in memory(cache).values())


@pytest.mark.parametrize("heads", ["q", "k", "v", "o", "qk", "vo", "kvo", "qkvo"])
@pytest.mark.parametrize("family", ["qwen3", "phi3", "qwen3_next"])
def test_every_head_steers(family, heads):
    model = attached_model(family, DeltaMemConfig(delta_heads=tuple(heads)))
    ids = random_ids()
    with_memory = model(ids)
    detach(model)
    assert distance(model(ids), with_memory) > 1e-3


def test_no_heads_write_and_do_not_steer():
    model = tiny_model("qwen3")
    ids = random_ids(1)
    frozen = model(ids)
    attach(model, DeltaMemConfig(delta_heads=()))
    randomise(model)
    cache = make_prompt_cache(model)
    assert mx.array_equal(model(ids, cache=cache), frozen)
    assert memory(cache)[0].any()


def test_target_layers():
    model = tiny_model("smollm3")
    assert attach(model, DeltaMemConfig(target_layers=(1, 3))) == [
        "model.layers.1.self_attn",
        "model.layers.3.self_attn",
    ]
    cache = make_prompt_cache(model)
    model(random_ids(), cache=cache)
    assert list(memory(cache)) == [1, 3]


@pytest.mark.parametrize("output_init", ["zero", "random", "base_slice", "base_slice_fixed"])
@pytest.mark.parametrize("family", ["qwen3", "phi3", "qwen3_next"])
@quantised
def test_initial_heads(family, output_init, bits):
    model = tiny_model(family, bits)
    config = DeltaMemConfig(num_state_heads=2, output_init=output_init, delta_heads=("q", "o"), online_gain=0.5)
    attach(model, config)
    layer_memory = model.layers[-1].self_attn.delta_mem
    head = layer_memory.delta_q_proj
    assert head.shape == (32, 16)
    columns = mx.linalg.norm(head, axis=0)
    if output_init == "zero":
        assert not columns.any()
    elif output_init == "random":
        assert 0 < mx.abs(head).max() <= 0.5 / 4
    else:
        assert distance(columns, mx.array([0.5] * 8 + [0.0] * 8)) <= 1e-5


def test_base_slice_takes_the_backbones_own_query_rows():
    model = tiny_model("qwen3_next")
    rows = model.layers[1].self_attn.q_proj.weight.reshape(4, 16, 32)[:, :8].reshape(32, 32)
    attach(model, DeltaMemConfig(output_init="base_slice", online_gain=1.0))
    expected = rows[:, :8] / mx.linalg.norm(rows[:, :8], axis=0)
    assert distance(model.layers[1].self_attn.delta_mem.delta_q_proj, expected) <= 1e-6


def test_initial_gates_and_scales():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(couple_lambda=False, trainable_delta_scale=True, delta_o_rmsnorm=True))
    layer_memory = model.layers[0].self_attn.delta_mem
    assert (layer_memory.beta_bias == -1.5).all()
    assert (layer_memory.lambda_bias == 1.5).all()
    assert (layer_memory.delta_o_rmsnorm_weight == 1).all()
    assert 2.0 * mx.sigmoid(layer_memory.delta_scale_raw).item() == pytest.approx(1.0)
    assert not layer_memory.beta_proj.any()


def test_attaching_twice_says_what_to_do():
    model = attached_model()
    with pytest.raises(ValueError, match="call detach\\(model\\) first"):
        attach(model, DeltaMemConfig())
    detach(model)
    attach(model, DeltaMemConfig(rank=4))
    assert memory(make_prompt_cache(model))[0].shape == (1, 1, 4, 4)


def test_functions_that_need_an_adapter_refuse_a_model_without_one():
    model = tiny_model("qwen3")
    for call in (
        detach,
        current_adapter,
        lambda m: read_only(m).__enter__(),
        lambda m: write_spans(m, [[0]]).__enter__(),
        lambda m: with_draft(m, make_prompt_cache(m), []),
    ):
        with pytest.raises(ValueError, match="the model has no adapter; call attach"):
            call(model)


@pytest.mark.parametrize("adapter", [None, 5, {"rank": 4}], ids=str)
def test_what_is_no_adapter_is_refused(adapter):
    model = tiny_model("qwen3")
    with pytest.raises(
        ValueError, match=r"the adapter is a \w+; expected the name of a folder or a Hub repo, an Adapter"
    ):
        attach(model, adapter)
    assert type(model).__module__.startswith("mlx_lm.")


@pytest.mark.parametrize("mask", [[[True]], True, np.array([[True]])], ids=str)
def test_a_write_mask_is_an_array_of_mlx(mask):
    with pytest.raises(ValueError, match=r"write_mask got a \w+; expected an array of MLX"):
        write_mask(attached_model(), mask).__enter__()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DeltaMemConfig(target_layers=(0, 7)), "target_layers names \\[7\\]; the model has layers 0 to 1"),
        (DeltaMemConfig(target_modules=("attention",)), "no layer of Model has a module named attention"),
        (DeltaMemConfig(target_modules=("self_attn", "mlp")), "layer 0 has mlp, self_attn of .*; expected exactly one"),
        (DeltaMemConfig(target_modules=("mlp",)), "layers.0.mlp is not supported: MLP has .*; a memory needs o_proj"),
    ],
)
def test_layers_that_cannot_have_a_memory_are_refused(config, message):
    model = tiny_model("qwen3")
    parameters = tree_flatten(model.parameters())
    with pytest.raises(ValueError, match=message):
        attach(model, config)
    assert len(tree_flatten(model.parameters())) == len(parameters)
    assert type(model).__module__.startswith("mlx_lm.")


def test_gpt2_is_refused_by_name():
    arguments = {"n_ctx": 32, "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 32, "vocab_size": 64}
    model = gpt2.Model(gpt2.ModelArgs(model_type="gpt2", layer_norm_epsilon=1e-5, num_key_value_heads=2, **arguments))
    with pytest.raises(ValueError, match=r"model\.h\.0\.attn is not supported: Attention has c_attn, c_proj"):
        attach(model, DeltaMemConfig(target_modules=("attn",)))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no layers"):
        attach(nn.Linear(2, 2), DeltaMemConfig())


def test_a_projection_that_the_attention_never_calls_is_an_error():
    model = attached_model(config=DeltaMemConfig(delta_heads=("k",)))
    attention = model.layers[1].self_attn

    class Sharing(type(attention)):
        @property
        def k_proj(self):
            return self["k_proj"]

    attention.__class__ = Sharing
    with pytest.raises(ValueError, match="layer 1 \\(Attention\\) never called k_proj"):
        model(random_ids())


def test_a_layer_that_runs_twice_in_a_pass_is_an_error():
    model = attached_model()
    block = model.layers[0]

    class Twice(type(block)):
        def __call__(self, x: mx.array, mask: object = None, cache: object = None) -> mx.array:
            return super().__call__(super().__call__(x, mask, None), mask, cache)

    block.__class__ = Twice
    with pytest.raises(ValueError, match="layer 0 runs twice in one pass"):
        model(random_ids())


def test_a_layer_that_does_not_run_is_an_error():
    model = attached_model()
    model.model.layers = model.model.layers[:1]
    with pytest.raises(ValueError, match=r"did not call the attention modules of layers \[1\]"):
        model(random_ids())


def test_an_attention_that_is_called_by_name():
    model = attached_model()
    expected = model(ids := random_ids())
    block = model.layers[0]

    class ByName(type(block)):
        def __call__(self, x: mx.array, mask: object = None, cache: object = None) -> mx.array:
            h = x + self.self_attn(x=self.input_layernorm(x), mask=mask, cache=cache)
            return h + self.mlp(self.post_attention_layernorm(h))

    block.__class__ = ByName
    assert mx.array_equal(model(ids), expected)


def test_heads_that_an_attention_lacks_are_refused():
    model = tiny_model("qwen3")
    del model.layers[1].self_attn.k_proj
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn has no k_proj to correct"):
        attach(model, DeltaMemConfig())
    attach(model, DeltaMemConfig(delta_heads=("q", "o")))


@pytest.mark.parametrize("around", ["nothing", "read_only", "spans", "cache"])
def test_gradient_checkpointing_is_exact_or_refused(around):
    model = attached_model(config=DeltaMemConfig(memory_write_granularity="message_mean"))
    ids = random_ids(1, 8)
    model.freeze()
    for layer in model.layers:
        layer.self_attn.delta_mem.unfreeze()

    def loss(inputs: mx.array) -> mx.array:
        cache = make_prompt_cache(model) if around == "cache" else None
        return (model(inputs, cache=cache) ** 2).mean()

    def gradients() -> dict[str, mx.array]:
        context = {"read_only": lambda: read_only(model), "spans": lambda: write_spans(model, [[0] * 8])}
        with context.get(around, nullcontext)():
            return dict(tree_flatten(nn.value_and_grad(model, loss)(ids)[1]))

    model.train()
    expected = gradients()
    block_class = type(model.layers[0])
    plain = block_class.__call__
    try:
        grad_checkpoint(model.layers[0])
        if around == "nothing":
            assert all(distance(gradient, expected[name]) <= 1e-5 for name, gradient in gradients().items())
        else:
            with pytest.raises(ValueError, match=r"checkpointing|call the model itself"):
                gradients()
    finally:
        block_class.__call__ = plain


def test_the_inner_model_without_a_cache_equals_the_model():
    model = attached_model()
    ids = random_ids()
    hidden = model.model(ids)
    assert distance(model.model.embed_tokens.as_linear(hidden), model(ids)) <= 1e-6


def test_the_inner_model_with_a_cache_is_an_error():
    model = attached_model()
    with pytest.raises(ValueError, match="call the model itself"):
        model.model(random_ids(), make_prompt_cache(model)[:-1])


@every_family
def test_an_attached_model_with_its_memory_off_is_the_frozen_model_bit_for_bit(family):
    ids = random_ids()
    frozen = tiny_model(family)
    attached = attached_model(family)
    cache, frozen_cache = (
        make_prompt_cache(attached, left_padding=[0, 0]),
        make_prompt_cache(frozen, left_padding=[0, 0]),
    )
    with memory_off(attached):
        for part in (ids, ids[:, :1], ids[:, 3:5]):
            assert mx.array_equal(attached(part, cache=cache), frozen(part, cache=frozen_cache))
    assert not any(mx.any(state).item() for state in memory(cache).values())


def test_read_only_ends_with_its_block_also_after_an_error():
    model = attached_model()
    with pytest.raises(RuntimeError, match="stop"), read_only(model), read_only(model):
        raise RuntimeError("stop")
    cache = make_prompt_cache(model)
    model(random_ids(), cache=cache)
    assert memory(cache)[0].any()


def test_spans_of_another_shape_are_an_error_and_leave_the_cache_alone():
    model = attached_model(config=DeltaMemConfig(memory_write_granularity="message_mean"))
    cache = make_prompt_cache(model)
    with pytest.raises(ValueError, match="expected one id for each token"), write_spans(model, [[0] * 5]):
        model(random_ids(1, 6), cache=cache)
    assert not memory(cache)[0].any()


def test_a_copy_of_an_attached_model_is_independent():
    model = attached_model()
    ids = random_ids()
    expected = model(ids)
    other = copy.deepcopy(model)
    detach(model)
    assert mx.array_equal(other(ids), expected)
    detach(other)
    assert mx.array_equal(other(ids), model(ids))


def test_lora_and_quantisation_on_top():
    model = attached_model("llama")
    ids = random_ids()
    before = model(ids)
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    assert mx.array_equal(model(ids), before)
    assert type(model.layers[0].self_attn.q_proj).__name__ == "LoRALinear"
    fresh = attached_model("llama")
    memory_weights = dict(fresh.layers[0].self_attn.delta_mem.items())
    nn.quantize(fresh, group_size=32, bits=8, class_predicate=fits)
    assert all(fresh.layers[0].self_attn.delta_mem[name] is value for name, value in memory_weights.items())
    assert 0 < distance(fresh(ids), before) < 0.5


def test_attaching_to_a_model_with_lora():
    model = tiny_model("llama")
    ids = random_ids()
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    frozen = model(ids)
    attach(model, DeltaMemConfig(output_init="base_slice"))
    with read_only(model):
        assert mx.array_equal(model(ids), frozen)


def test_training_moves_the_adapter_and_nothing_else():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(rank=4, output_init="random"))
    model.freeze()
    for layer in model.layers:
        layer.self_attn.delta_mem.unfreeze()
    ids = random_ids()

    def loss(inputs: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(inputs[:, :-1]), inputs[:, 1:], reduction="mean")

    value, gradients = nn.value_and_grad(model, loss)(ids)
    names = [name for name, gradient in tree_flatten(gradients) if mx.abs(gradient).max() > 0]
    assert value.item() > 0
    assert all(".delta_mem." in name for name in names)
    assert {name.rsplit(".", 1)[1] for name in names} >= {"memory_q_proj", "memory_k_proj", "beta_bias", "delta_o_proj"}


def test_a_memory_of_one_row_serves_a_batch_and_two_rows_do_not_serve_three():
    model = attached_model()
    cache = make_prompt_cache(model)
    set_memory(cache, {0: mx.random.normal((1, 1, 8, 8))})
    model(random_ids(2), cache=cache)
    assert memory(cache)[0].shape == (2, 1, 8, 8)
    fresh = make_prompt_cache(model)
    fresh[-1] = cache[-1]
    with pytest.raises(ValueError, match="the memory in the cache has 2 rows and the tokens have 3"):
        model(random_ids(3), cache=fresh)


def test_golden_adapter_by_path_and_by_load():
    loaded, _ = load(backbone(), adapter=adapter())
    model, _ = load(backbone())
    assert attach(model, adapter()) == [f"model.layers.{layer}.self_attn" for layer in range(3)]
    ids = random_ids()
    assert mx.array_equal(model(ids), loaded(ids))
