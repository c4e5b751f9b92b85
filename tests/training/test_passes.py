from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from mlx_deltamem import DeltaMemConfig, attach, make_prompt_cache, memory, read_only, write_spans
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training import passes
from mlx_deltamem.training.batch import Batch
from mlx_deltamem.training.batches import BatchMaker
from mlx_deltamem.training.episode import Episode
from tests.conftest import distance
from tests.core.test_model import attached_model, every_family
from tests.families import tiny_model
from tests.training.cases import VARIANTS, episode

EPISODES = [episode(11, (9, 3), (5, 2)), episode(3, (6, 2)), episode(14, (7, 4), seed=1)]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def ignore(*_: object) -> None:
    """An observer that does nothing."""


def batch_of(model: nn.Module, episodes: list[Episode] = EPISODES) -> Batch:
    return BatchMaker(model.attachment.config).batch(episodes)


def written(model: nn.Module, history: Segments) -> dict[int, mx.array]:
    """The states after a single history, run with keys and values and without padding."""
    cache = make_prompt_cache(model)
    with write_spans(model, [history.message_ids], [history.sentence_ids]):
        model(mx.array([history.ids]), cache=cache)
    return memory(cache)


@every_family
def test_a_batch_of_histories_equals_single_histories(family):
    check_written(attached_model(family))


@every_variant
def test_a_batch_equals_single_histories_for_every_variant(variant):
    check_written(attached_model(config=VARIANTS[variant]))


def check_written(model: nn.Module) -> None:
    states = passes.write(model, batch_of(model), ignore)
    for row, each in enumerate(EPISODES):
        for layer, expected in written(model, each.history).items():
            assert mx.abs(expected).max().item() > 0
            assert distance(states[layer][row : row + 1], expected) <= 2e-6


@pytest.mark.parametrize("writes", [False, True], ids=["only read", "written as in a chat"])
@every_family
def test_texts_are_read_with_the_state_of_their_episode(family, writes):
    model = attached_model(family)
    batch = batch_of(model)
    states = passes.of_rows(passes.write(model, batch, ignore), batch.rows)
    logits = passes.read(model, states, batch.asked, writes=writes)
    numbers = [(row, question) for row, each in enumerate(EPISODES) for question in each.questions]
    for (row, question), place in zip(numbers, range(4), strict=True):
        cache = make_prompt_cache(model)
        cache[-1].cache = [state[place : place + 1] if state.size else state for state in states]
        with nullcontext() if writes else read_only(model):
            whole = model(mx.array([question.ids]), cache=cache)
        answer = slice(question.answer - 1, len(question.ids) - 1)
        assert distance(logits[place, : len(question.ids) - question.answer], whole[0, answer]) <= 2e-5
        assert batch.rows[place].item() == row
    assert distance(passes.read(model, states, batch.asked, writes=not writes), logits) > 1e-3


def test_writing_a_text_does_not_change_the_given_states():
    model = attached_model()
    batch = batch_of(model)
    states = passes.of_rows(passes.write(model, batch, ignore), batch.rows)
    before = list(states)
    mx.eval(passes.read(model, states, batch.asked, writes=True))
    assert all(one is other for one, other in zip(states, before, strict=True))


def test_no_pass_copies_keys_and_values(monkeypatch):
    model = attached_model()

    def copy(*_: object) -> None:
        raise AssertionError("keys and values were put into a cache")

    monkeypatch.setattr(KVCache, "update_and_fetch", copy)
    batch = batch_of(model)
    states = passes.write(model, batch, ignore)
    passes.read(model, passes.of_rows(states, batch.rows), batch.asked)
    passes.read(model, passes.empty(model), batch.context)


def test_a_batch_can_be_used_again():
    model = attached_model()
    batch = batch_of(model)
    first = passes.write(model, batch, ignore)
    assert [each.lengths.tolist() for each in batch.history] == [[11, 3, 14]]
    assert all(distance(*pair) == 0 for pair in zip(first, passes.write(model, batch, ignore), strict=True))


def test_reading_writes_nothing():
    model = attached_model()
    batch = batch_of(model)
    states = passes.of_rows(passes.write(model, batch, ignore), batch.rows)
    before = [state + 0 for state in states]
    mx.eval(before, passes.read(model, states, batch.asked))
    assert all(mx.array_equal(*pair) for pair in zip(states, before, strict=True))


def test_the_states_of_rows():
    states = [mx.arange(3.0).reshape(3, 1, 1, 1), mx.zeros((3, 0, 0, 0))]
    of_rows = passes.of_rows(states, mx.array([2, 2, 0]))
    assert of_rows[0].flatten().tolist() == [2, 2, 0]
    assert of_rows[1].shape == (3, 0, 0, 0)
    assert passes.of_rows([mx.ones((1, 1, 2, 2))], mx.array([0, 0]))[0].shape == (1, 1, 2, 2)


def test_corrupted_states():
    state = mx.random.normal((2, 3, 4, 4))
    found, empty = passes.corrupted([state, mx.zeros((3, 0, 0, 0))])
    expected = np.array(state)[:, [2, 0, 1]][:, :, [3, 0, 1, 2]][..., [3, 2, 1, 0]]
    assert mx.array_equal(found, mx.array(expected))
    assert empty.shape == (3, 0, 0, 0)


def test_histories_that_are_empty():
    model = attached_model()
    none = [Episode(Segments([], [], []), EPISODES[0].questions, EPISODES[0].context)]
    states = passes.write(model, batch_of(model, none), ignore)
    assert all(state.shape[0] == 1 and not state.any() for state in states)
    states = passes.write(model, batch_of(model, none + EPISODES[:1]), ignore)
    assert all(not state[0].any() and state[1].any() for state in states)


@pytest.mark.parametrize("variant", ["TSW", "MSW", "scalar gates", "SSW"])
def test_the_mean_gates_leave_padding_out(variant):
    model = attached_model(config=VARIANTS[variant])
    batch = batch_of(model)
    means = passes.GateMeans(*(each.mask for each in batch.history))
    passes.write(model, batch, means)
    total, tokens = 0.0, 0
    for each in EPISODES:
        gates = []
        with observing(model, lambda _, reads, __, gates=gates: gates.append(reads.gates.write)):
            written(model, each.history)
        total += np.array([gate.mean(axis=(2, 3)).sum().item() for gate in gates])
        tokens += len(each.history.ids)
    assert np.allclose(np.array(means.by_layer), total / tokens, atol=1e-6)


def test_the_mean_gates_of_nothing():
    assert passes.GateMeans(mx.zeros((1, 0), mx.bool_)).by_layer.tolist() == [0.0]
    means = passes.GateMeans(mx.zeros((1, 3), mx.bool_))
    model = attached_model()
    with observing(model, means):
        model(mx.array([[1, 2, 3]]))
    assert means.by_layer.tolist() == [0.0, 0.0]


def test_layers_without_a_memory():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(rank=3, target_layers=(1,), output_init="random"))
    batch = batch_of(model)
    states = passes.of_rows(passes.write(model, batch, ignore), batch.rows)
    assert [state.shape for state in states] == [(3, 0, 0, 0), (4, 1, 3, 3)]
    logits = passes.read(model, passes.corrupted(states), batch.asked)
    assert logits.shape == (4, batch.asked.targets.shape[1], 64)


def test_an_adapter_without_heads_writes_too():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(rank=3, delta_heads=()))
    assert all(state.any() for state in passes.write(model, batch_of(model), ignore))
