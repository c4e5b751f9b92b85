"""Rows that leave and join the memory of a batch, where a state of one row is that of all rows."""

import copy

import mlx.core as mx
import pytest

from mlx_deltamem import make_prompt_cache, memory, set_memory
from mlx_deltamem.core.use import memory_off
from tests.conftest import distance
from tests.core.test_model import attached_model, random_ids

STATE = (1, 8, 8)


@pytest.fixture(scope="module")
def model():
    return attached_model()


def read(model, rows: int, padded: bool) -> list:
    cache = make_prompt_cache(model, left_padding=[0] * rows if padded else None)
    model(random_ids(rows, 5), cache=cache)
    return cache


def with_one_row(cache: list, layers: list[int], by_hand: bool) -> list[mx.array]:
    """Set the memory of some layers to one row; returns the states that each row then has, by row."""
    one = {layer: mx.random.normal((1, *STATE)) for layer in layers}
    if by_hand:
        cache[-1].cache = [one.get(layer, state) for layer, state in enumerate(cache[-1].cache)]
    else:
        set_memory(cache, one)
    rows = cache[-1].batch_size
    return [mx.broadcast_to(one.get(layer, state), (rows, *STATE)) for layer, state in memory(cache).items()]


one_row = pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
every_way = pytest.mark.parametrize(("padded", "by_hand"), [(True, True), (True, False), (False, False)])


def states(entry) -> list[mx.array]:
    return list(memory([entry]).values())


def assert_equal(entry, expected: list[mx.array]) -> None:
    assert all(mx.array_equal(found, wanted) for found, wanted in zip(states(entry), expected, strict=True))


@one_row
@every_way
@pytest.mark.parametrize("kept", [[1], [2, 0], [-1], []])
def test_rows_leave_a_batch_whose_memory_has_one_row(model, layers, padded, by_hand, kept):
    cache = read(model, 3, padded)
    expected = with_one_row(cache, layers, by_hand)
    cache[-1].filter(kept)
    assert_equal(cache[-1], [state[mx.array(kept, mx.int32)] for state in expected])


@one_row
@every_way
def test_a_row_is_taken_out_of_a_batch_whose_memory_has_one_row(model, layers, padded, by_hand):
    cache = read(model, 3, padded)
    expected = with_one_row(cache, layers, by_hand)
    for index in (0, 2, -1):
        assert_equal(cache[-1].extract(index), [state[index % 3 : index % 3 + 1] for state in expected])


@one_row
@every_way
def test_batches_whose_memories_have_one_row_join(model, layers, padded, by_hand):
    cache, other = read(model, 3, padded), read(model, 2, padded)
    expected, added = with_one_row(cache, layers, by_hand), with_one_row(other, [0], by_hand)
    before = states(other[-1])
    cache[-1].extend(other[-1])
    assert_equal(cache[-1], [mx.concatenate(both) for both in zip(expected, added, strict=True)])
    assert_equal(other[-1], before)
    for entry, new in zip(cache[:-1], other[:-1], strict=True):
        if padded:
            entry.extend(new)
    if padded:
        assert model(mx.array([[3]] * 5), cache=cache).shape[0] == 5


def test_rows_leave_a_batch_that_ran_without_its_memory(model):
    cache = make_prompt_cache(model)
    with memory_off(model):
        model(random_ids(3, 4), cache=cache)
    cache[-1].filter([2, 1])
    assert [state.shape[0] for state in states(cache[-1])] == [2, 2]
    set_memory(cache, {0: mx.ones((1, *STATE))})
    assert memory(cache)[0].shape[0] == 2


def test_rows_that_are_not_there_are_refused_and_nothing_changes(model):
    cache = read(model, 2, padded=True)
    before, past = states(cache[-1]), copy.copy(cache[-1]._past.rows)
    for call in (cache[-1].filter, lambda indices: cache[-1].extract(indices[-1])):
        for indices in ([0, 2], [-3]):
            with pytest.raises(ValueError, match=r"row -?\d was asked for; expected one of the 2 rows"):
                call(indices)
    with pytest.raises(ValueError, match="expected prompt caches of models with the same adapter"):
        cache[-1].extend(make_prompt_cache(attached_model("smollm3"))[-1])
    assert_equal(cache[-1], before)
    assert all(now is then for now, then in zip(cache[-1]._past.rows, past, strict=True))


@pytest.mark.parametrize("padded", [True, False])
def test_a_memory_of_other_rows_than_the_text_is_refused(model, padded):
    cache = read(model, 2, padded)
    before = memory(cache)
    with pytest.raises(ValueError, match="the state for layer 1 has 3 rows and the prompt cache 2; expected the same"):
        set_memory(cache, {0: mx.ones((1, *STATE)), 1: mx.ones((3, *STATE))})
    assert all(distance(state, before[layer]) == 0 for layer, state in memory(cache).items())


def test_a_memory_without_a_text_may_have_any_number_of_rows(model):
    cache = make_prompt_cache(model)
    for rows in (3, 1, 2):
        set_memory(cache, {layer: mx.ones((rows, *STATE)) for layer in (0, 1)})
    assert model(random_ids(2, 4), cache=cache).shape[0] == 2
