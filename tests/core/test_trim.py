"""Prompt caches with a memory that are trimmed: by mlx-lm's functions, and in its speculative decoding."""

import copy
from contextlib import nullcontext

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models.cache import (
    LRUPromptCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.models.cache import make_prompt_cache as make_plain_cache

from mlx_deltamem import (
    DeltaMemConfig,
    attach,
    make_prompt_cache,
    memory,
    read_only,
    reset_memory,
    set_memory,
    with_draft,
    write_mask,
    write_spans,
)
from mlx_deltamem.core.entry_past import KEPT
from mlx_deltamem.core.past import passes_of
from mlx_deltamem.core.spans import RunningSpans
from mlx_deltamem.core.use import using_spans
from mlx_deltamem.training.segments.write_pass import write_states
from tests.conftest import distance, randomise
from tests.core.test_model import CONFIGS, attached_model, random_ids
from tests.families import tiny_model

SHIFTED = DeltaMemConfig(key_shift=True)
MEANS = DeltaMemConfig(memory_write_granularity="message_mean")
PROMPT = [5, 9, 33, 2, 17, 8, 60, 11]
# Sums of float32 in another order, of states whose numbers are about 1. Without any trim, texts of 100 to 180 tokens
# that are read in other parts differ by up to 7e-7; in the model with sliding windows, by up to 1.4e-5.
ROUNDING, ROUNDING_OF_WINDOWS = 1e-5, 1e-4


def wide_window_model(config: DeltaMemConfig):
    """A model with sliding windows that the texts here do not fill."""
    model = tiny_model("gemma3_text")
    model = type(model)(type(model.args)(**{**vars(model.args), "sliding_window": 512}))
    attach(model, config)
    randomise(model, 0.15)
    return model.eval()


MODELS = {
    "llama": attached_model("llama"),
    "qwen3": attached_model("qwen3", CONFIGS["MSW"]),
    "qwen3 with a key shift": attached_model("qwen3", SHIFTED),
    "gemma3_text": wide_window_model(CONFIGS["TSW"]),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def read(model, cache, tokens: list[int], written: list[bool] | None = None) -> mx.array:
    with nullcontext() if written is None else write_mask(model, mx.array([written])):
        return model(mx.array([tokens]), cache=cache)


def assert_memory(cache, expected) -> None:
    has_windows = any(isinstance(entry, RotatingKVCache) for entry in cache)
    states = memory(cache)
    assert states.keys() == memory(expected).keys()
    found, wanted = (mx.concatenate([part[layer].flatten() for layer in part]) for part in (states, memory(expected)))
    assert distance(found, wanted) <= (ROUNDING_OF_WINDOWS if has_windows else ROUNDING)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["read", "masked", "read only"]), st.integers(1, 24)),
        st.tuples(st.just("read"), st.sampled_from([KEPT - 1, KEPT, KEPT + 9])),
        st.tuples(st.just("one by one"), st.integers(1, 12)),
        st.tuples(st.just("trim"), st.integers(0, 40)),
        st.tuples(st.just("copy"), st.just(0)),
    ),
    min_size=2,
    max_size=7,
)


@pytest.mark.slow
@every_model
@settings(max_examples=12)
@given(steps=STEPS, last=st.integers(1, 200))
def test_a_trimmed_cache_is_that_of_the_text_that_is_left(kind, steps, last):
    model = MODELS[kind]
    cache, tokens, written = make_prompt_cache(model), [], []
    for step, count in [*steps, ("trim", last)]:
        new = [(7 * len(tokens) + 3 * index) % 64 for index in range(count)]
        if step == "trim":
            assert can_trim_prompt_cache(cache)
            done = min(count, len(tokens))
            assert trim_prompt_cache(cache, count) == done
            tokens, written = tokens[: len(tokens) - done], written[: len(written) - done]
            continue
        if step == "copy":
            other, cache = cache, copy.deepcopy(cache)
            read(model, other, [1, 2, 3])
            continue
        flags = [step != "read only" and (step != "masked" or index % 3 > 0) for index in range(count)]
        if step == "read only":
            with read_only(model):
                read(model, cache, new)
        elif step == "one by one":
            for token in new:
                read(model, cache, [token])
        else:
            read(model, cache, new, flags if step == "masked" else None)
        tokens, written = tokens + new, written + flags
    expected = make_prompt_cache(model)
    if tokens:
        read(model, expected, tokens, written)
    assert_memory(cache, expected)
    # The whole cache goes on as that of the text.
    assert distance(read(model, cache, [4, 5]), read(model, expected, [4, 5])) <= 1e-4
    assert_memory(cache, expected)


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("drafted", [1, 2, 5])
def test_speculative_decoding_gives_the_tokens_of_plain_decoding(kind, drafted):
    model = MODELS[kind]
    draft = tiny_model("qwen3" if "qwen3" in kind else "llama")
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=16)]
    cache = make_prompt_cache(model)
    for given_cache in (None, with_draft(model, cache, make_plain_cache(draft))):
        found = list(
            speculative_generate_step(
                mx.array(PROMPT), model, draft, num_draft_tokens=drafted, max_tokens=16, prompt_cache=given_cache
            )
        )
        assert [token for token, _, _ in found] == expected
    # mlx-lm has run all tokens, but for a last one that was not drafted.
    run = expected if found[-1][2] else expected[:-1]
    whole = make_prompt_cache(model)
    read(model, whole, PROMPT + run)
    assert_memory(cache, whole)


@pytest.mark.slow
def test_drafts_are_taken_and_thrown_away():
    """The test above would not try much if a draft were always right or always wrong."""
    model, draft = MODELS["qwen3"], tiny_model("qwen3")
    found = list(speculative_generate_step(mx.array(PROMPT), model, draft, num_draft_tokens=3, max_tokens=40))
    assert 0 < sum(is_drafted for _, _, is_drafted in found) < 30


@pytest.mark.slow
def test_an_attached_model_may_draft():
    model = MODELS["qwen3"]
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=16)]
    found = list(speculative_generate_step(mx.array(PROMPT), model, model, num_draft_tokens=3, max_tokens=16))
    assert [token for token, _, _ in found] == expected
    # A model that drafts for itself is right each time.
    assert sum(is_drafted for _, _, is_drafted in found) == 12


def test_the_prompt_cache_of_mlx_lms_server_goes_back_to_a_common_beginning():
    model = MODELS["llama"]
    store, cache = LRUPromptCache(), make_prompt_cache(model)
    read(model, cache, PROMPT)
    for token in [4, 44, 6]:
        read(model, cache, [token])
    store.insert_cache("model", [*PROMPT, 4, 44, 6], cache)
    asked = [*PROMPT[:5], 1, 2]
    found, rest = store.fetch_nearest_cache("model", asked)
    assert rest == [1, 2]
    expected = make_prompt_cache(model)
    read(model, expected, PROMPT[:5])
    assert_memory(found, expected)
    # The stored one is as before.
    again, rest = store.fetch_nearest_cache("model", [*PROMPT, 4, 44, 6, 7])
    assert rest == [7]
    assert_memory(again, cache)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3 with a key shift"])
def test_rows_of_mlx_lms_batches_can_be_trimmed(kind):
    model = MODELS[kind]
    prompts = [PROMPT, [7, 1, 40], [12, 50, 3, 3, 9]]
    generator = BatchGenerator(model, max_tokens=9, prefill_step_size=4)
    # The rows have different lengths, leave at different times, and one joins later.
    generator.insert(prompts[:2], max_tokens=[9, 3])
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    caches, joined = {}, False
    while responses := generator.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
            if response.finish_reason:
                caches[response.uid] = response.prompt_cache
        if not joined:
            joined = True
            generator.insert(prompts[2:], max_tokens=[5])
    generator.close()
    for uid, prompt in enumerate(prompts):
        text = prompt + tokens[uid]
        for count in (1, 3, len(text) - 4):
            cache = copy.deepcopy(caches[uid])
            assert trim_prompt_cache(cache, count) == count
            expected = make_prompt_cache(model)
            read(model, expected, text[: len(text) - count])
            assert_memory(cache, expected)
            assert distance(read(model, cache, [4, 5]), read(model, expected, [4, 5])) <= 1e-4


def test_a_padded_batch_is_trimmed_in_all_rows():
    model = MODELS["llama"]
    rows = mx.array([PROMPT, [0, 0, 0, *PROMPT[3:]]])
    cache = make_prompt_cache(model, left_padding=[0, 3])
    model(rows[:, :5], cache=cache)
    model(rows[:, 5:], cache=cache)
    assert trim_prompt_cache(cache, 4) == 4
    shorter = make_prompt_cache(model, left_padding=[0, 3])
    model(rows[:, :4], cache=shorter)
    assert_memory(cache, shorter)
    # Back to the padding and on.
    assert trim_prompt_cache(cache, 2) == 2
    again, whole = model(rows[:, 2:], cache=cache), make_prompt_cache(model, left_padding=[0, 3])
    assert distance(again[:, 1:], model(rows, cache=whole)[:, 3:]) <= 1e-4
    assert_memory(cache, whole)


@pytest.mark.parametrize("padded_first", [True, False])
def test_rows_that_joined_a_padded_batch_are_trimmed_like_the_others(padded_first):
    model = MODELS["qwen3 with a key shift"]
    padded, alone = make_prompt_cache(model, left_padding=[0, 3]), make_prompt_cache(model)
    model(mx.array([PROMPT, [0, 0, 0, *PROMPT[3:]]]), cache=padded)
    read(model, alone, [7, 1, 40, 9])
    other = [entry.merge([entry]) for entry in alone]
    first, second = (padded, other) if padded_first else (other, padded)
    for entry, more in zip(first, second, strict=True):
        entry.extend(more)
    assert trim_prompt_cache(first, 2) == 2
    model(mx.array([[4], [5], [6]]), cache=first)
    texts = [[*PROMPT[:6]], [*PROMPT[3:6]], [7, 1]] if padded_first else [[7, 1], [*PROMPT[:6]], [*PROMPT[3:6]]]
    for row, (text, token) in enumerate(zip(texts, [4, 5, 6], strict=True)):
        expected = make_prompt_cache(model)
        read(model, expected, [*text, token])
        assert_memory([entry.extract(row) for entry in first], expected)


def test_a_set_memory_is_the_beginning_of_what_can_be_trimmed():
    model = MODELS["llama"]
    for change in (
        reset_memory,
        lambda cache: set_memory(cache, {0: mx.ones((1, 8, 8))}),
        lambda cache: cache[-1].cache.__setitem__(0, mx.ones((1, 1, 8, 8))),
    ):
        cache = make_prompt_cache(model)
        read(model, cache, PROMPT)
        change(cache)
        expected = copy.deepcopy(memory(cache))
        read(model, cache, [1, 2, 3])
        assert trim_prompt_cache(cache, 3) == 3
        assert all(mx.array_equal(memory(cache)[layer], state) for layer, state in expected.items())
        with pytest.raises(ValueError, match="cannot be trimmed by 1 tokens: its past has 0, because"):
            trim_prompt_cache(cache, 1)


def test_where_the_memory_could_not_be_trimmed_the_model_refuses_to_go_on():
    """mlx-lm trims the keys and values before the memory refuses."""
    model = MODELS["llama"]
    cache = make_prompt_cache(model)
    read(model, cache, PROMPT)
    reset_memory(cache)
    read(model, cache, [1, 2])
    with pytest.raises(ValueError, match="cannot be trimmed by 3 tokens: its past has 2"):
        trim_prompt_cache(cache, 3)
    with pytest.raises(ValueError, match="was trimmed by 3 tokens and its memory could not be"):
        read(model, cache, [4])
    assert cache[0].offset == len(PROMPT) - 1
    set_memory(cache, {layer: mx.zeros_like(state) for layer, state in memory(cache).items()})
    expected = make_prompt_cache(model)
    read(model, expected, PROMPT[:-1])
    reset_memory(expected)
    assert distance(read(model, cache, [4]), read(model, expected, [4])) <= 1e-4


def test_a_memory_that_was_set_before_the_text_is_what_trimming_all_goes_back_to():
    model = MODELS["llama"]
    cache, told = make_prompt_cache(model), {0: mx.random.normal((1, 1, 8, 8))}
    set_memory(cache, told)
    read(model, cache, PROMPT)
    assert trim_prompt_cache(cache, 100) == len(PROMPT)
    assert mx.array_equal(memory(cache)[0], told[0])


@pytest.mark.slow
def test_a_cache_from_a_file_can_be_trimmed_by_the_tokens_after_it(tmp_path):
    model, path = MODELS["llama"], str(tmp_path / "c.safetensors")
    cache = make_prompt_cache(model)
    read(model, cache, PROMPT)
    save_prompt_cache(path, cache)
    loaded = load_prompt_cache(path)
    draft = tiny_model("llama")
    joined = with_draft(model, loaded, make_plain_cache(draft))
    found = speculative_generate_step(mx.array([3, 4]), model, draft, max_tokens=8, prompt_cache=joined)
    tokens = [token for token, *_ in found]
    assert tokens == [t for t, _ in generate_step(mx.array([3, 4]), model, max_tokens=8, prompt_cache=cache)]
    with pytest.raises(ValueError, match="cannot be trimmed by 20 tokens"):
        trim_prompt_cache(loaded, 20)


def test_spans_of_one_call_are_trimmed_to_those_of_the_tokens_that_are_left():
    model = attached_model("llama", MEANS)
    ids, messages = random_ids(2, 9), [[0, 0, 0, 1, 1, 1, 1, 2, 2], [-1, 0, 0, 0, 0, -1, 1, 1, 1]]
    cache, expected = make_prompt_cache(model), make_prompt_cache(model)
    with write_spans(model, messages):
        model(ids, cache=cache)
    assert trim_prompt_cache(cache, 4) == 4
    with write_spans(model, [row[:5] for row in messages]):
        model(ids[:, :5], cache=expected)
    assert_memory(cache, expected)


def test_spans_of_several_calls_are_trimmed_as_a_whole_only():
    model = attached_model("llama", MEANS)
    ids = random_ids(1, 8)
    cache = make_prompt_cache(model)
    spans = RunningSpans([[0] * 8], None, MEANS)
    with using_spans(model, spans):
        model(ids[:, :4], cache=cache)
        model(ids[:, 4:], cache=cache)
    other = copy.deepcopy(cache)
    assert trim_prompt_cache(other, 8) == 8
    assert not any(state.any() for state in memory(other).values())
    with pytest.raises(ValueError, match="means of spans in several calls"):
        trim_prompt_cache(cache, 2)


@pytest.mark.slow
def test_where_keys_and_values_cannot_be_trimmed_nothing_is():
    for model in (attached_model("qwen3_next"), attached_model("gemma3_text")):
        cache = make_prompt_cache(model)
        read(model, cache, list(range(20)))
        before = memory(cache)
        assert trim_prompt_cache(cache, 3) == 0
        assert all(mx.array_equal(memory(cache)[layer], state) for layer, state in before.items())
        # The memory alone keeps a short past, and does not grow with the text.
        for token in range(2 * KEPT + 10):
            read(model, cache, [token % 64])
        assert sum(each.tokens for each in passes_of(cache[-1]._past.rows)) <= 2 * KEPT
        assert cache[-1].trim(KEPT) == KEPT
        with pytest.raises(ValueError, match="the keys and values cannot be trimmed as far"):
            cache[-1].trim(2 * KEPT)


def test_a_model_that_cannot_be_trimmed_is_refused_with_a_draft():
    model = attached_model("qwen3_next")
    with pytest.raises(ValueError, match="requires a trimmable prompt cache"):
        next(speculative_generate_step(mx.array(PROMPT), model, tiny_model("qwen3")))
    with pytest.raises(ValueError, match="has ArraysCache that cannot be trimmed"):
        with_draft(model, make_prompt_cache(model), [])


def test_caches_that_were_only_put_side_by_side_are_refused():
    model, draft = MODELS["llama"], tiny_model("llama")
    side_by_side = make_prompt_cache(model) + make_plain_cache(draft)
    with pytest.raises(ValueError, match=r"mlx_deltamem\.with_draft\(model, cache, draft_cache\)"):
        next(speculative_generate_step(mx.array(PROMPT), model, draft, prompt_cache=side_by_side))


@pytest.mark.slow
def test_tokens_one_by_one_are_kept_in_few_arrays():
    model = MODELS["llama"]
    cache = make_prompt_cache(model)
    for token in range(4 * KEPT + 5):
        read(model, cache, [token % 64])
    assert [each.tokens for each in passes_of(cache[-1]._past.rows)] == [1] * 5 + [KEPT] * 4
    # P = 32 float32 for each token and layer, the states before 9 passes, and the present ones.
    per_layer = (4 * KEPT + 5) * 32 * 4 + 10 * 8 * 8 * 4
    assert cache[-1].nbytes == per_layer * len(model.layers)


def test_a_write_pass_of_training_runs_without_gradients_too():
    """It has caches that cannot be trimmed and do not say so."""
    model, ids = MODELS["llama"], random_ids(2, KEPT + 6)
    states = write_states(model, ids, mx.array([KEPT + 6, 9]))
    cache = make_prompt_cache(model)
    model(ids[:1], cache=cache)
    assert distance(states[0][:1], memory(cache)[0]) <= ROUNDING


def test_training_keeps_no_past():
    model = attached_model("llama")
    model.train()
    cache = make_prompt_cache(model)
    read(model, cache, PROMPT)
    assert passes_of(cache[-1]._past.rows) == []
