"""The memory in mlx-lm's prompt cache: generation, batches, saving, quantised and rotating caches."""

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import batch_generate, stream_generate
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    QuantizedKVCache,
    RotatingKVCache,
    load_prompt_cache,
    save_prompt_cache,
)
from mlx_lm.models.cache import make_prompt_cache as make_plain_cache

from mlx_deltamem import (
    ChatSession,
    DeltaMemConfig,
    attach,
    load,
    make_prompt_cache,
    memory,
    read_only,
    reset_memory,
    set_memory,
    write_mask,
)
from mlx_deltamem.core.cache import memory_alone
from tests.conftest import adapter, backbone, distance
from tests.core.test_model import CONFIGS, attached_model, every_family, random_ids
from tests.families import tiny_model

PROMPTS = [[5, 9, 33, 2, 17, 8, 60, 11], [7, 1, 40], [12, 50, 3, 3, 9]]


@pytest.fixture(scope="module")
def loaded():
    """The golden model with its tokenizer."""
    return load(backbone(), adapter=adapter())


def greedy(model, prompt: list[int], count: int, cache: list | None = None) -> list[int]:
    """The simplest way to generate: one call for the prompt and one for each token."""
    cache = make_prompt_cache(model) if cache is None else cache
    tokens, feed = [], mx.array([prompt])
    for _ in range(count):
        tokens.append(mx.argmax(model(feed, cache=cache)[0, -1]).item())
        feed = mx.array([[tokens[-1]]])
    return tokens


def until_eos(tokenizer, tokens: list[int]) -> list[int]:
    ends = [index for index, token in enumerate(tokens) if token in tokenizer.eos_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("step", [1, 3, 2048])
def test_stream_generate(loaded, step):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    options = {"max_tokens": 9, "prompt_cache": cache, "prefill_step_size": step}
    tokens = [response.token for response in stream_generate(model, tokenizer, PROMPTS[0], **options)]
    assert tokens == until_eos(tokenizer, greedy(model, PROMPTS[0], 9))
    expected = make_prompt_cache(model)
    model(mx.array([PROMPTS[0] + tokens]), cache=expected)
    for layer, state in memory(expected).items():
        assert distance(memory(cache)[layer], state) <= 2e-5


def test_stream_generate_makes_the_cache_itself(loaded):
    model, tokenizer = loaded
    tokens = [response.token for response in stream_generate(model, tokenizer, PROMPTS[0], max_tokens=6)]
    assert tokens == until_eos(tokenizer, greedy(model, PROMPTS[0], 6))


@every_family
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_ragged_batch_equals_each_prompt_alone(family, kind):
    model = attached_model(family, CONFIGS[kind])
    generator = BatchGenerator(model, max_tokens=7, prefill_step_size=4)
    generator.insert(PROMPTS, max_tokens=[7, 3, 5])
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    caches = {}
    while responses := generator.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
            if response.finish_reason:
                caches[response.uid] = response.prompt_cache
    generator.close()
    for uid, (prompt, count) in enumerate(zip(PROMPTS, [7, 3, 5], strict=True)):
        alone = make_prompt_cache(model)
        assert tokens[uid] == greedy(model, prompt, count, alone)
        # The batch generator has run its last token through the model; the simple loop has not.
        model(mx.array([[tokens[uid][-1]]]), cache=alone)
        for layer, state in memory(alone).items():
            assert distance(memory(caches[uid])[layer], state) <= 1e-4


def test_a_batch_that_others_join_and_leave(loaded):
    model, _ = loaded
    generator = BatchGenerator(model, max_tokens=6)
    generator.insert(PROMPTS[:1])
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(40):
        if step == 2:
            generator.insert(PROMPTS[1:])
        for response in generator.next_generated():
            tokens[response.uid].append(response.token)
    generator.close()
    assert [tokens[uid] for uid in range(3)] == [greedy(model, prompt, 6) for prompt in PROMPTS]


def test_batch_generate_goes_on_from_caches(loaded):
    model, tokenizer = loaded
    caches = [make_prompt_cache(model) for _ in PROMPTS]
    for cache, prompt in zip(caches, PROMPTS, strict=True):
        model(mx.array([prompt]), cache=cache)
    copies = copy.deepcopy(caches)
    tails = [[4, 44], [6], [21, 22, 23]]
    response = batch_generate(model, tokenizer, tails, prompt_caches=caches, max_tokens=5, return_token_ids=True)
    assert response.token_ids == [greedy(model, tail, 5, c) for tail, c in zip(tails, copies, strict=True)]


def test_saving_and_loading_gives_the_same_tokens(loaded, tmp_path):
    model, _ = loaded
    cache = make_prompt_cache(model)
    model(mx.array([PROMPTS[0]]), cache=cache)
    save_prompt_cache(str(tmp_path / "c.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "c.safetensors"))
    assert all(mx.array_equal(state, memory(cache)[layer]) for layer, state in memory(again).items())
    assert greedy(model, [3, 4], 6, again) == greedy(model, [3, 4], 6, cache)


def test_saving_and_loading_with_layers_that_have_no_memory(tmp_path):
    model = attached_model("qwen3_next")
    cache = make_prompt_cache(model)
    model(mx.array([PROMPTS[0]]), cache=cache)
    save_prompt_cache(str(tmp_path / "c.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "c.safetensors"))
    assert list(memory(again)) == [1, 3]
    assert greedy(model, [3, 4], 6, again) == greedy(model, [3, 4], 6, cache)


def test_keeping_the_memory_and_dropping_the_text(loaded):
    model, _ = loaded
    told = make_prompt_cache(model)
    model(mx.array([PROMPTS[0]]), cache=told)
    fresh = make_prompt_cache(model)
    fresh[-1] = told[-1]
    assert all(mx.array_equal(state, memory(told)[layer]) for layer, state in memory(fresh).items())
    with_memory, without = model(mx.array([[3]]), cache=fresh), model(mx.array([[3]]), cache=make_prompt_cache(model))
    assert distance(with_memory, without) > 0.1


def test_kv_bits_quantises_the_text_and_not_the_memory():
    model = tiny_model("llama")
    wide = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = type(model)(type(model.args)(**{**vars(model.args), **wide}))
    attach(model, DeltaMemConfig(output_init="base_slice", online_gain=0.5))
    exact, quantised = make_prompt_cache(model), make_prompt_cache(model)
    prompt = random_ids(1, 40)[0]
    steps = [
        generate_step(prompt, model, max_tokens=4, prompt_cache=cache, kv_bits=bits, quantized_kv_start=8)
        for cache, bits in ((exact, None), (quantised, 8))
    ]
    expected, found = ([probabilities for _, probabilities in step] for step in steps)
    assert [type(entry) for entry in quantised[:-1]] == [QuantizedKVCache] * 2
    assert distance(found[0], expected[0]) <= 0.05
    for layer, state in memory(exact).items():
        assert memory(quantised)[layer].dtype == mx.float32
        assert distance(memory(quantised)[layer], state) <= 0.02


def test_a_rotating_cache_forgets_text_and_not_memory(loaded):
    model, _ = loaded
    cache = make_prompt_cache(model, max_kv_size=8)
    assert [type(entry) for entry in cache[:-1]] == [RotatingKVCache] * 3
    tokens = list(generate_step(mx.array(PROMPTS[0] * 4), model, max_tokens=10, prompt_cache=cache))
    assert len(tokens) == 10
    assert all(entry.size() == 8 for entry in cache[:-1])
    assert all(state.any() for state in memory(cache).values())
    short, long = make_prompt_cache(model, max_kv_size=64), make_prompt_cache(model)
    assert greedy(model, PROMPTS[0], 8, short) == greedy(model, PROMPTS[0], 8, long)


def test_a_model_that_defines_its_caches_keeps_them():
    model = attached_model("gemma3_text")
    plain = make_plain_cache(tiny_model("gemma3_text"))
    cache = make_prompt_cache(model, max_kv_size=4)
    assert [type(entry) for entry in cache[:-1]] == [type(entry) for entry in plain]
    assert len(make_plain_cache(model)) == len(plain) + 1


def test_a_plain_cache_is_refused_and_the_message_says_what_to_call(loaded):
    model, _ = loaded
    frozen, _ = load(backbone())
    for cache in (make_plain_cache(frozen), [], make_prompt_cache(model)[1:], [*make_prompt_cache(model), None]):
        with pytest.raises(ValueError, match=r"make it with mlx_deltamem\.make_prompt_cache\(model\)"):
            model(mx.array([[1]]), cache=cache)


def test_the_cache_of_another_adapter_is_refused(loaded):
    model, _ = loaded
    other = make_prompt_cache(attached_model(config=CONFIGS["MSW"]))
    expected = make_prompt_cache(model)
    with pytest.raises(
        ValueError, match=r"states \(2, 4, 4\) in 2 of 2 layers, while the attached one has \(1, 8, 8\)"
    ):
        model(mx.array([[1]]), cache=[*expected[:-1], other[-1]])


def test_an_error_in_the_model_leaves_the_memory_as_it_was():
    model = attached_model()
    cache = make_prompt_cache(model)
    model(mx.array([PROMPTS[0]]), cache=cache)
    before = memory(cache)

    class Failing(type(model.model.norm)):
        def __call__(self, _: mx.array) -> mx.array:
            raise RuntimeError("stop")

    model.model.norm.__class__ = Failing
    with pytest.raises(RuntimeError, match="stop"):
        model(mx.array([PROMPTS[1]]), cache=cache)
    assert all(mx.array_equal(state, before[layer]) for layer, state in memory(cache).items())


def test_set_and_reset():
    model = attached_model(config=CONFIGS["MSW"])
    cache = make_prompt_cache(model)
    state = mx.random.normal((1, 2, 4, 4)).astype(mx.bfloat16)
    set_memory(cache, {1: state})
    assert mx.array_equal(memory(cache)[1], state.astype(mx.float32))
    assert memory(cache)[1].dtype == mx.float32
    assert not memory(cache)[0].any()
    reset_memory(cache)
    assert not any(state.any() for state in memory(cache).values())
    assert memory(cache)[1].shape == (1, 2, 4, 4)


@pytest.mark.parametrize("calls", [1, 2])
def test_arrays_that_were_handed_out_or_in_are_not_those_of_the_cache(calls):
    """The cache knows its states by their identity: a change in place would leave their joined form as it was."""
    model = attached_model(config=CONFIGS["MSW"])
    cache, expected = make_prompt_cache(model), make_prompt_cache(model)
    given, other = ({layer: mx.random.normal((1, 2, 4, 4)) for layer in (0, 1)} for _ in range(2))
    set_memory(expected, {layer: mx.array(state) for layer, state in given.items()})
    set_memory(cache, given)
    for _ in range(calls):
        for entry in (cache, expected):
            model(mx.array([[5]]), cache=entry)
        found = memory(cache)
        for states in (given, found):
            for state in states.values():
                state[:] = other[0]
    assert all(mx.array_equal(state, memory(expected)[layer]) for layer, state in memory(cache).items())
    row = cache[-1].extract(0)
    row.cache[0][:] = 0
    assert mx.array_equal(model(mx.array([[7]]), cache=cache), model(mx.array([[7]]), cache=expected))


def test_a_mask_changed_within_its_context_has_no_effect():
    model, ids = attached_model(), random_ids(1, 4)
    cache, mask = make_prompt_cache(model), mx.array([[False]])
    with write_mask(model, mask):
        mask[:] = True
        model(ids, cache=cache)
    assert not memory(cache)[0].any()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({2: (1, 2, 4, 4)}, r"layer 2 has no memory; the layers that have one are \[0, 1\]"),
        ({0: (1, 2, 4, 5)}, r"is \(1, 2, 4, 5\); expected \[B, 2, 4, 4\]"),
        ({0: (1, 4, 4)}, r"is \(1, 4, 4\); expected \[B, 2, 4, 4\]"),
        ({0: (2, 2, 4, 4), 1: (3, 2, 4, 4)}, "expected one size for all layers"),
    ],
)
def test_states_that_do_not_fit_change_nothing(states, message):
    cache = make_prompt_cache(attached_model(config=CONFIGS["MSW"]))
    with pytest.raises(ValueError, match=message):
        set_memory(cache, {1: mx.ones((1, 2, 4, 4))} | {layer: mx.ones(shape) for layer, shape in states.items()})
    assert not any(state.any() for state in memory(cache).values())


def test_caches_without_a_memory_are_refused(loaded):
    frozen, _ = load(backbone())
    for call in (memory, reset_memory, lambda cache: set_memory(cache, {})):
        for cache in (make_prompt_cache(frozen), make_plain_cache(tiny_model("qwen3_next")), []):
            with pytest.raises(ValueError, match="the prompt cache has no memory; attach an adapter"):
                call(cache)


WRONG_STATES = {
    "numpy": (np.ones((1, 1, 8, 8)), r"layer 0 is a ndarray; expected an array of MLX: mx\.array\(state\)"),
    "list": ([[1.0]], "layer 0 is a list; expected an array of MLX"),
    "None": (None, "layer 0 is a NoneType; expected an array of MLX"),
    "complex": (mx.ones((1, 1, 8, 8), mx.complex64), "layer 0 has complex numbers; expected real ones"),
    "NaN": (mx.full((1, 1, 8, 8), mx.nan), "layer 0 has numbers that are not finite"),
    "infinite": (mx.full((1, 8, 8), -mx.inf), "layer 0 has numbers that are not finite"),
    "no rows": (mx.ones((0, 1, 8, 8)), r"is \(0, 1, 8, 8\); expected \[B, 1, 8, 8\] with at least one row"),
    "a number": (mx.array(1.0), r"is \(\); expected \[B, 1, 8, 8\]"),
}


@pytest.mark.parametrize("kind", WRONG_STATES)
def test_what_is_no_state_is_refused_by_caches_and_chats(loaded, kind):
    state, message = WRONG_STATES[kind]
    cache, chat = make_prompt_cache(loaded[0]), ChatSession(*loaded)
    states = {1: mx.ones((1, 1, 8, 8)), 0: state}
    with pytest.raises(ValueError, match=message):
        set_memory(cache, states)
    with pytest.raises(ValueError, match=message if isinstance(state, mx.array) else "expected arrays by layer index"):
        chat.memory = states
    for found in (memory(cache), chat.memory):
        assert not any(array.any() for array in found.values())
    with pytest.raises(ValueError, match="the states are a list; expected arrays by layer index, as `memory` has"):
        set_memory(cache, [state])


@pytest.mark.parametrize("padding", [[], [-1], [0, -2], ["a"], [1.5], [None], 2, "12"])
def test_padding_must_be_counts(loaded, padding):
    with pytest.raises(ValueError, match="expected a count of padding tokens for each row"):
        make_prompt_cache(loaded[0], left_padding=padding)


def test_a_frozen_model_gets_a_padded_cache_too():
    frozen, _ = load(backbone())
    ids = mx.array([[0, 0, 5, 9], [1, 2, 3, 4]])
    padded = frozen(ids, cache=make_prompt_cache(frozen, left_padding=[2, 0]))
    assert distance(padded[:1, 2:], frozen(ids[:1, 2:])) <= 1e-4
    assert distance(padded[1:], frozen(ids[1:])) <= 1e-4


def test_read_only_generation_leaves_the_memory(loaded):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    model(mx.array([PROMPTS[0]]), cache=cache)
    before = memory(cache)
    with read_only(model):
        list(stream_generate(model, tokenizer, [3, 4, 5], max_tokens=4, prompt_cache=cache))
    assert all(mx.array_equal(state, before[layer]) for layer, state in memory(cache).items())


def test_a_cache_of_the_memory_alone():
    """A prompt cache of the memory alone serves a text that takes one call."""
    model, ids = attached_model(), random_ids()
    whole, alone = make_prompt_cache(model), memory_alone(make_prompt_cache(model))
    assert distance(model(ids, cache=alone), model(ids, cache=whole)) == 0
    assert all(distance(state, memory(whole)[layer]) == 0 for layer, state in memory(alone).items())
    assert alone[:-1] == [None, None]
    with pytest.raises(ValueError, match="prompt cache has 1 entries and no memory"):
        model(ids, cache=alone[-1:])
