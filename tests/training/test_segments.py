"""The write pass of training, in one piece and in segments."""

import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, ChunkedKVCache, KVCache, RotatingKVCache
from mlx_lm.tuner.trainer import grad_checkpoint

from mlx_deltamem import DeltaMemConfig, attach, detach, make_prompt_cache, memory, read_only, write_spans
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.use import observing, write_mask
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.segments import write_pass as segments
from mlx_deltamem.training.segments.cache import SegmentKeys
from mlx_deltamem.training.segments.diverted import running_layers
from mlx_deltamem.training.segments.write_pass import write_states
from tests.conftest import distance, randomise
from tests.families import FAMILIES, tiny_model

TOKENS, LENGTHS = 18, (18, 7)
CONFIGS = {
    "TSW": DeltaMemConfig(),
    "SSW": DeltaMemConfig(memory_write_granularity="message_mean"),
    "MSW": DeltaMemConfig(rank=4, alpha=4.0, num_state_heads=4),
}
# Units across segments, a token in no unit, and a row with fewer units than the other.
MESSAGES = [[0] * 4 + [1] * 3 + [-1] + [2] * 10, [0] * 5 + [1] * 2 + [-1] * 11]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def training_model(
    family: str = "qwen3", config: DeltaMemConfig = CONFIGS["TSW"], bits: int | None = None
) -> nn.Module:
    """A tiny model with only the adapter trainable."""
    model = tiny_model(family, bits)
    attach(model, config)
    randomise(model, 0.08)
    model.train()
    freeze_all_but_adapter(model)
    return model


def histories() -> tuple[mx.array, mx.array]:
    return mx.random.randint(0, 64, (len(LENGTHS), TOKENS)), mx.array(LENGTHS)


def shares(messages: list[list[int]] = MESSAGES) -> mx.array:
    """`[B, U, T]`, the share of each token in its message."""
    ids = mx.array(messages)[:, None]
    members = (ids == mx.arange(max(map(max, messages)) + 1)[:, None]).astype(mx.float32)
    return members / mx.maximum(members.sum(axis=-1, keepdims=True), 1)


def units_for(kind: str) -> mx.array | None:
    return shares() if kind == "SSW" else None


Gradients = tuple[list[mx.array], dict[str, mx.array]]


def with_gradients(
    model: nn.Module,
    *history: mx.array | None,
    segment: int | None = None,
    written: mx.array | None = None,
    compiled: bool = False,
) -> Gradients:
    """The states of a write pass, and the gradients of a weighted sum of all their numbers."""

    def loss(model: nn.Module, *history: mx.array | None) -> tuple[mx.array, list[mx.array]]:
        states = write_states(model, *history, segment=segment, written=written)
        keys = mx.random.split(mx.random.key(1), len(states))
        weights = [mx.random.normal(s.shape, key=key) for s, key in zip(states, keys, strict=True)]
        return sum((s * w).sum() for s, w in zip(states, weights, strict=True)), states

    def step(*history: mx.array | None) -> tuple[tuple[mx.array, list[mx.array]], dict]:
        return nn.value_and_grad(model, loss)(model, *history)

    if compiled:
        # mlx-lm's trainer does the same.
        step = mx.compile(step, inputs=[model.state], outputs=[model.state])
    (_, states), gradients = step(*history)
    mx.eval(states, gradients)
    return states, dict(tree_flatten(gradients))


# Segments add the same numbers in another order. Some operations of these families have no float64 in MLX, and in
# float32 the layers enlarge one rounding, 6e-8, up to 200 times (layer 0 of Gemma 3). Another token changes 1e-1.
ROUNDING = 1e-4


def assert_equal(found: Gradients, expected: Gradients, tolerance: float = ROUNDING) -> None:
    """The largest difference relative to the largest number of each array."""
    pairs = [*zip(found[0], expected[0], strict=True)]
    assert found[1].keys() == expected[1].keys()
    pairs += [(found[1][name], gradient) for name, gradient in expected[1].items()]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if theirs.size:
            largest = mx.abs(theirs).max().item()
            assert distance(ours, theirs) <= tolerance * largest


@pytest.mark.slow
@every_family
@every_kind
def test_segments_give_the_states_and_gradients_of_the_pass_in_one_piece(family, kind):
    model = training_model(family, CONFIGS[kind])
    history = *histories(), units_for(kind)
    plain = with_gradients(model, *history)
    used = [name for name, gradient in plain[1].items() if gradient.any()]
    # A pass that writes means reads a state of zeros all the time.
    assert any("delta_q_proj" in name for name in used) == (kind != "SSW")
    # Segments that divide the history, one that does not, and one that is longer.
    for segment in (5, 6, 30):
        assert_equal(with_gradients(model, *history, segment=segment), plain)


@pytest.mark.slow
@every_family
@every_kind
def test_a_recomputed_call_gives_the_same_bits(family, kind, monkeypatch):
    model = training_model(family, CONFIGS[kind])
    history = *histories(), units_for(kind)
    checkpointed = with_gradients(model, *history, segment=5)
    monkeypatch.setattr(segments, "running_layers", lambda *_: nullcontext())
    assert_equal(checkpointed, with_gradients(model, *history, segment=5), tolerance=0)


@pytest.mark.slow
@every_family
def test_segments_in_a_compiled_step(family):
    for kind in ("TSW", "SSW") if family == "qwen3" else ("TSW",):
        model = training_model(family, CONFIGS[kind])
        history = *histories(), units_for(kind)
        found = with_gradients(model, *history, segment=10, compiled=True)
        assert_equal(found, with_gradients(model, *history))


@every_family
def test_a_pass_in_one_piece_is_a_call_of_the_model(family):
    model = training_model(family)
    ids, lengths = histories()
    cache = make_prompt_cache(model)
    cache[-1].lengths = mx.array(LENGTHS)
    model(ids, cache=cache)
    states = write_states(model, ids, lengths)
    assert lengths.tolist() == list(LENGTHS)
    for layer, state in memory(cache).items():
        assert state.any()
        assert distance(states[layer], state) <= 1e-5
    assert [state.shape for state in states] == [(2, *shape) for shape in model.memory_layout.shapes]


@pytest.mark.parametrize("segment", [None, 5])
@every_kind
def test_padding_neither_reads_nor_writes(kind, segment):
    model = training_model(config=CONFIGS[kind])
    ids, lengths = histories()
    units = units_for(kind)
    states = write_states(model, ids, lengths, units, segment)
    for row, length in enumerate(LENGTHS):
        alone = None if units is None else units[row : row + 1, :, :length]
        for layer, state in enumerate(write_states(model, ids[row : row + 1, :length], mx.array([length]), alone)):
            assert distance(states[layer][row : row + 1], state) <= 1e-5


@pytest.mark.parametrize("segment", [None, 5])
def test_units_write_what_write_spans_writes(segment):
    model = training_model(config=CONFIGS["SSW"])
    ids, lengths = histories()
    states = write_states(model, ids, lengths, shares(), segment)
    cache = make_prompt_cache(model)
    with write_spans(model, MESSAGES):
        model(ids, cache=cache)
    for layer, state in memory(cache).items():
        assert distance(states[layer], state) <= 1e-5
    by_token = write_states(model, ids, lengths, None, segment)
    assert distance(by_token[0], states[0]) > 1e-3


@pytest.mark.parametrize("segment", [None, 5])
@every_family
def test_tokens_outside_the_mask_only_read(family, segment):
    model = training_model(family)
    ids, lengths = histories()
    written = mx.random.uniform(shape=ids.shape) < 0.5
    states = write_states(model, ids, lengths, None, segment, written)
    cache = make_prompt_cache(model)
    cache[-1].lengths = mx.array(LENGTHS)
    with write_mask(model, written):
        model(ids, cache=cache)
    everything = write_states(model, ids, lengths, None, segment)
    for layer, state in memory(cache).items():
        assert distance(states[layer], state) <= 1e-5 < distance(everything[layer], state)


@pytest.mark.parametrize("compiled", [False, True])
@every_kind
def test_segments_of_a_partly_written_history(kind, compiled):
    model = training_model(config=CONFIGS[kind])
    history = *histories(), units_for(kind)
    written = mx.random.uniform(shape=history[0].shape) < 0.5
    plain = with_gradients(model, *history, written=written)
    assert_equal(with_gradients(model, *history, segment=5, written=written, compiled=compiled), plain)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    data=st.data(), length=st.integers(1, 14), segment=st.integers(1, 16), family=st.sampled_from(["qwen3", "olmo3"])
)
def test_any_lengths_and_segments(data, length, segment, family):
    model = training_model(family)
    lengths = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    ids = mx.random.randint(0, 64, (len(lengths), length))
    plain = with_gradients(model, ids, mx.array(lengths))
    if any(lengths):
        assert_equal(with_gradients(model, ids, mx.array(lengths), segment=segment), plain)
    else:
        assert not any(state.any() for state in write_states(model, ids, mx.array(lengths), None, segment))


@pytest.mark.parametrize("segment", [None, 5])
def test_no_history_leaves_empty_states(segment):
    states = write_states(training_model(), mx.zeros((2, 0), mx.int32), mx.array([0, 0]), None, segment)
    assert [state.shape for state in states] == [(2, 1, 8, 8)] * 2
    assert not any(state.any() for state in states)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_backbones(bits):
    model = training_model(bits=bits)
    history = histories()
    assert_equal(with_gradients(model, *history, segment=5), with_gradients(model, *history))


@pytest.mark.parametrize("bits", [None, 4])
def test_activations_in_bfloat16_and_an_adapter_in_float32(bits):
    model = training_model(bits=bits)
    model.set_dtype(mx.bfloat16)
    for attention in attached_attention(model).values():
        attention.delta_mem.set_dtype(mx.float32)
    history = histories()
    plain = with_gradients(model, *history)
    assert {gradient.dtype for gradient in plain[1].values()} == {mx.float32}
    assert_equal(with_gradients(model, *history, segment=5), plain, tolerance=0.1)


def test_gradients_of_backbone_weights():
    model = training_model()
    model.unfreeze()
    history = histories()
    plain = with_gradients(model, *history)
    assert plain[1]["model.layers.0.mlp.up_proj.weight"].any()
    assert_equal(with_gradients(model, *history, segment=5), plain)


def test_layers_without_a_memory_are_checkpointed():
    model = training_model("smollm3", DeltaMemConfig(target_layers=(0, 2)))
    history = histories()
    plain = with_gradients(model, *history)
    assert [state.shape[-1] for state in plain[0]] == [8, 0, 8, 0]
    for compiled in (False, True):
        assert_equal(with_gradients(model, *history, segment=5, compiled=compiled), plain)


@pytest.mark.parametrize("segment", [None, 6])
def test_layers_after_the_last_memory_are_not_run(segment):
    model = training_model("smollm3", DeltaMemConfig(target_layers=(0, 2)))
    ids, lengths = histories()
    graph = io.StringIO()
    mx.export_to_dot(graph, *write_states(model, ids, lengths, None, segment))
    attentions = re.findall(r'label ="ScaledDotProductAttention"|label ="Softmax"', graph.getvalue())
    # The projections of the first two layers.
    assert len(attentions) == 2 * (1 if segment is None else 3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_states_without_a_gradient(mode):
    model = getattr(training_model(), mode)()
    ids, lengths = histories()
    for ours, theirs in zip(write_states(model, ids, lengths, None, 5), write_states(model, ids, lengths), strict=True):
        assert distance(ours, theirs) <= 1e-5


def gate_loss(model: nn.Module, seen: list[int], segment: int | None) -> Callable[[], tuple]:
    """A loss of the gates that an observer of the write pass sees."""

    def loss(model: nn.Module, ids: mx.array, lengths: mx.array) -> mx.array:
        terms = []

        def observe(layer: int, reads: object, output: mx.array) -> None:
            seen.append(layer)
            assert output.shape == (2, TOKENS, 32)
            gates = reads.gates
            steered = reads.correct("o_proj", output)
            terms.append((gates.write.mean(axis=(2, 3)) * mx.arange(TOKENS)).mean() + steered.sum() + gates.keep.sum())

        with observing(model, observe):
            write_states(model, ids, lengths, None, segment)
        return sum(terms)

    return nn.value_and_grad(model, loss)


def test_an_observer_is_called_once_for_each_layer_and_gets_gradients():
    model = training_model("smollm3")
    history, seen = histories(), []
    plain, plain_gradients = gate_loss(model, seen, None)(model, *history)
    assert seen == [0, 1, 2, 3]
    value, gradients = gate_loss(model, seen, 5)(model, *history)
    assert seen[4:] == [0, 1, 2, 3]
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    assert_equal(([], dict(tree_flatten(gradients))), ([], dict(tree_flatten(plain_gradients))))


def test_the_model_is_unchanged_after_a_pass():
    model = training_model()
    classes = [type(module) for module in model.modules()]
    parameters = dict(tree_flatten(model.parameters()))
    for compiled in (False, True):
        with_gradients(model, *histories(), segment=5, compiled=compiled)
        assert [type(module) for module in model.modules()] == classes
        for name, value in tree_flatten(model.parameters()):
            assert mx.array_equal(value, parameters[name])
    detach(model)


def test_the_model_is_unchanged_after_an_error():
    model = training_model()
    classes = [type(module) for module in model.modules()]
    weights = model.layers[0].self_attn.delta_mem.trainable_parameters()
    own, model.layers[0].mlp = model.layers[0].mlp, nn.Linear(3, 3)
    with pytest.raises(ValueError, match="addmm"):
        write_states(model, *histories(), segment=5)
    model.layers[0].mlp = own
    assert [type(module) for module in model.modules()] == classes
    assert all(model.layers[0].self_attn.delta_mem[name] is weight for name, weight in weights.items())
    assert any(state.any() for state in write_states(model, *histories(), segment=5))


def test_gradient_checkpointing_of_mlx_lm_is_refused():
    model = training_model()
    layer_class = type(model.layers[0])
    own_call = layer_class.__call__
    grad_checkpoint(model.layers[0])
    try:
        for segment in (None, 5):
            with pytest.raises(ValueError, match="turn gradient checkpointing off"):
                with_gradients(model, *histories(), segment=segment)
    finally:
        layer_class.__call__ = own_call


def test_steps_do_not_leak_memory():
    model = training_model()
    history = histories()
    used = []
    for _ in range(4):
        with_gradients(model, *history, segment=5)
        mx.synchronize()
        used.append(mx.get_active_memory())
    assert used[-1] <= used[1]


@pytest.mark.slow
def test_segments_need_less_memory():
    model = training_model("smollm3")
    history = mx.random.randint(0, 64, (1, 1024)), mx.array([1024])
    peaks = []
    for segment in (None, 64):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        with_gradients(model, *history, segment=segment)
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < peaks[0] / 8


def test_other_caches_are_refused_for_segments():
    model = training_model()
    frozen_class = model.memory_layout.frozen_class
    frozen_class.make_cache = lambda self: [ChunkedKVCache(8) for _ in self.layers]
    try:
        with pytest.raises(ValueError, match=r"has a ChunkedKVCache, .*; leave the segment size out"):
            write_states(model, *histories(), segment=5)
        frozen_class.make_cache = lambda self: [RotatingKVCache(32, keep=4) for _ in self.layers]
        with pytest.raises(ValueError, match="has a RotatingKVCache"):
            write_states(model, *histories(), segment=5)
        states = write_states(model, *histories())
    finally:
        del frozen_class.make_cache
    assert all(state.any() for state in states)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": mx.zeros(4, mx.int32)}, r"ids have shape \(4,\); expected \[B, T\]"),
        ({"lengths": mx.array([3])}, r"lengths have shape \(1,\); expected one for each of 2 rows"),
        ({"units": mx.zeros((2, 3, 4))}, r"units have shape \(2, 3, 4\); expected \(2, 'U', 18\)"),
        ({"units": mx.zeros((2, 0, TOKENS))}, r"units have shape \(2, 0, 18\)"),
        ({"written": mx.ones((2, 3), mx.bool_)}, r"is mlx.core.bool of shape \(2, 3\); expected bool, \(2, 18\)"),
        ({"written": mx.ones((2, TOKENS))}, r"the history's written mask is mlx.core.float32 of shape \(2, 18\)"),
        ({"segment": 0}, "segment is 0 tokens; expected 1 or more"),
    ],
)
def test_wrong_shapes_are_refused(changes, message):
    ids, lengths = histories()
    with pytest.raises(ValueError, match=message):
        write_states(training_model(config=CONFIGS["SSW"]), **{"ids": ids, "lengths": lengths} | changes)


def test_models_that_cannot_write_are_refused():
    with pytest.raises(ValueError, match="the model has no adapter; call attach"):
        write_states(tiny_model("qwen3"), *histories())
    model = training_model()
    with read_only(model), pytest.raises(ValueError, match=r"outside of read_only\(model\)"):
        write_states(model, *histories())


def test_threads_do_not_share_diverted_layers():
    layer, x = nn.Linear(2, 2), mx.ones((1, 2))
    mx.eval(layer.parameters(), x)
    both = Barrier(2, timeout=60)

    def other_thread() -> list[object]:
        both.wait()
        outputs = [layer(x)]
        with running_layers([layer], lambda *_: "the other's"):
            both.wait()
            both.wait()
            outputs.append(layer(x))
        return outputs

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(other_thread)
        with running_layers([layer], lambda *_: "ours"):
            both.wait()
            both.wait()
            assert layer(x) == "ours"
        assert isinstance(layer(x), mx.array)
        both.wait()
        outputs = other.result()
    assert isinstance(outputs[0], mx.array)
    assert outputs[1] == "the other's"
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("window", [None, 1, 4, 6])
def test_keys_and_values_equal_those_of_mlx_lms_caches(window):
    ours = SegmentKeys(window)
    theirs = KVCache() if window is None else RotatingKVCache(window)
    for length in (5, 3, 2, 7):
        # An array if it is needed, else "causal".
        kinds = [type(cache.make_mask(length, return_array=False, window_size=window)) for cache in (ours, theirs)]
        assert kinds[0] is kinds[1]
        masks = [cache.make_mask(length, return_array=True, window_size=window) for cache in (ours, theirs)]
        new = mx.random.normal((2, 1, 2, length, 4))
        parts = [cache.update_and_fetch(*new) for cache in (ours, theirs)]
        assert ours.offset == theirs.offset
        assert mx.array_equal(*masks)
        assert mx.array_equal(parts[0][0], parts[1][0])
        assert mx.array_equal(parts[0][1], parts[1][1])
        assert parts[0][0].shape[2] == masks[0].shape[-1]


def test_the_state_of_a_recurrent_layer_passes_through_segments():
    model = training_model("qwen3_next")
    assert isinstance(make_prompt_cache(model)[0], ArraysCache)
    ids, lengths = histories()
    whole = write_states(model, ids, lengths)
    assert distance(write_states(model, ids, lengths, None, 4)[3], whole[3]) <= 1e-5
