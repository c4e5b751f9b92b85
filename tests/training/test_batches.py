from collections import Counter
from dataclasses import replace
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem import DeltaMemConfig
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments
from mlx_deltamem.training.batch import Asked, Batch
from mlx_deltamem.training.batches import BatchMaker, Feed, _rounded
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.order import BatchOrder
from tests.training.cases import VARIANTS, as_read, episode, half_written, in_turns, towards

TSW = DeltaMemConfig()


def test_a_batch_as_arrays():
    told = Episode(
        Segments([5, 6, 7], [-1, 0, 0], [-1, 0, 1]),
        (Question([1, 2, 3, 4], 2, (3, 4)), Question([9, 8, 7], 1, (1, 1))),
    )
    short = Episode(Segments([4], [0], [0]), (Question([2, 3], 1, (1, 2)),))
    batch = BatchMaker(TSW, value_weight=4.0).batch([told, short])
    (written,) = batch.history
    assert written.ids.tolist() == [[5, 6, 7, *[0] * 13], [4, *[0] * 15]]
    assert written.lengths.tolist() == [3, 1] and batch.history_tokens == 4
    assert written.mask.sum(axis=-1).tolist() == [3, 1] and written.mask[0, :3].all()
    assert batch.shares is None and batch.context is None
    assert batch.rows.tolist() == [0, 0, 1, 0]
    asked = batch.asked
    assert asked.ids[:, :4].tolist() == [[1, 2, 3, 4], [9, 8, 7, 0], [2, 3, 0, 0], [1, 2, 3, 4]]
    # The last question is a filler.
    assert asked.mask.sum(axis=-1).tolist() == [4, 3, 2, 0]
    assert asked.positions[:, :2].tolist() == [[1, 2], [0, 1], [0, 0], [1, 2]]
    assert asked.targets[:, :2].tolist() == [[3, 4], [8, 7], [3, 0], [3, 4]]
    assert asked.weights[:, :3].tolist() == [[1, 4, 0], [1, 1, 0], [4, 0, 0], [0, 0, 0]]
    assert asked.values[:, :3].tolist() == [
        [False, True, False],
        [False, False, False],
        [True, False, False],
        [False, False, False],
    ]
    assert asked.ids.shape == asked.mask.shape == (4, 16)
    assert asked.targets.shape == (4, 8)
    kinds = {name: getattr(getattr(asked, name), "dtype", None) for name in Asked._fields}
    assert kinds == {
        "ids": mx.int32,
        "mask": mx.bool_,
        "positions": mx.int32,
        "targets": mx.int32,
        "weights": mx.float32,
        "values": mx.bool_,
        "written": None,
        "alone": None,
        "kinds": None,
    }
    assert written.ids.dtype == written.lengths.dtype == batch.rows.dtype == mx.int32


def test_each_answer_token_is_predicted_from_the_one_before_it():
    batch = BatchMaker(TSW).batch([episode(5, (9, 3), (12, 11), seed=1), episode(7, (4, 2))])
    for asked in (batch.asked, batch.context):
        following = mx.take_along_axis(asked.ids, asked.positions + 1, axis=1)
        assert mx.where(asked.weights > 0, following == asked.targets, True).all()
        assert (asked.weights > 0).sum(axis=-1).tolist() == [3, 11, 2, 0]
    assert (batch.context.mask.sum(axis=-1) - batch.asked.mask.sum(axis=-1)).tolist() == [3, 3, 3, 0]


def test_flags_of_written_tokens_as_arrays():
    plain, masked = episode(5, (6, 2), context=False), half_written(episode(5, (6, 2), (4, 1), context=False))
    assert (
        BatchMaker(TSW).batch([plain]).history[0].written is None
        and BatchMaker(TSW).batch([plain]).asked.written is None
    )
    assert BatchMaker(TSW).batch([as_read(plain)]).asked.written is None
    batch = BatchMaker(TSW).batch([masked, as_read(plain)])
    (told,) = batch.history
    assert batch.writes and told.written.dtype == batch.asked.written.dtype == mx.bool_
    assert told.written.shape == told.ids.shape and batch.asked.written.shape == batch.asked.ids.shape
    assert told.written_mask[:, :6].tolist() == [[False, True, True, False, True, False], [True] * 5 + [False]]
    assert batch.asked.written[:, :6].tolist()[:2] == [[False, True, True] * 2, [False, True, True] + [False] * 3]
    assert batch.asked.written[2].all()
    means = BatchMaker(VARIANTS["SSW"])
    units = np.array(means.batch([replace(plain, written=[True, False, True, True, True])]).shares)
    assert np.allclose(units[0, :2, :5], [[0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]])


def test_a_step_that_is_not_compiled_has_little_padding():
    short, long = episode(5, (6, 2), context=False), in_turns(episode(124, (9, 3), (7, 1), context=False), 100, 24)
    batch = BatchMaker(TSW, compiled=False).batch([long, short])
    assert [(each.ids.shape, each.episodes.tolist()) for each in batch.history] == [
        ((1, 5), [1]),
        ((1, 100), [0]),
        ((1, 24), [0]),
    ]
    assert batch.size == 2 and batch.rows.tolist() == [0, 0, 1]
    assert batch.asked.ids.shape == (3, 9) and batch.asked.targets.shape == (3, 3)
    # The units of an adapter that writes means belong to a pass over all histories.
    (means,) = BatchMaker(VARIANTS["SSW"], compiled=False).batch([replace(long, turns=()), short]).history
    assert means.ids.shape == (2, 124) and means.episodes is None


def test_turns_as_arrays():
    plain, turned = episode(5, (6, 2), context=False), in_turns(episode(24, (6, 2), context=False), 20, 4)
    batch = BatchMaker(TSW).batch([plain, turned])
    first, second = batch.history
    # Each pass is as wide as its longest text.
    assert first.ids.shape == first.written.shape == first.mask.shape == (2, 32)
    assert second.ids.shape == second.written.shape == (2, 16)
    assert [each.lengths.tolist() for each in batch.history] == [[5, 20], [0, 4]]
    assert first.ids[0, :5].tolist() == plain.history.ids
    assert [*first.ids[1, :20].tolist(), *second.ids[1, :4].tolist()] == turned.history.ids
    assert first.written_mask[1, :4].tolist() == [False, True, True, True]
    assert first.written_mask[0].sum() == 5 and not second.written_mask[0].any() and second.written_mask[1].any()
    assert batch.rows.tolist() == [0, 1]


def test_the_token_after_a_value_counts_as_the_value():
    """An answer that goes on after a value names another one."""
    told = Episode(Segments([5], [0], [0]), (Question([1, 2, 3, 4, 5, 6], 2, (2, 4)), Question([1, 2, 3], 2, (2, 2))))
    asked = BatchMaker(TSW, value_weight=4.0).batch([told]).asked
    assert asked.weights[:2, :4].tolist() == [[4, 4, 4, 1], [1, 0, 0, 0]]
    assert asked.values[0, :4].tolist() == [True, True, False, False]


def test_targets_as_arrays():
    frozen, plain = towards(episode(5, (6, 2), (7, 3)), "frozen", 2.0), towards(episode(5, (6, 2)), "", 3.0)
    batch = BatchMaker(TSW, value_weight=4.0).batch([plain, frozen, towards(plain, "answer")])
    assert batch.asked.weights[:, :2].tolist() == [[3, 12], [0, 0], [0, 0], [1, 4]]
    assert batch.asked.mask.sum(axis=-1).tolist() == [6, 6, 7, 6]
    assert batch.asked.alone.tolist() == [False] * 3 + [True]
    assert batch.frozen.rows.tolist() == [1, 2, 1, 1]
    assert batch.frozen.weights[:, :4].tolist() == [[2, 2, 0, 0], [2, 2, 2, 0], [0] * 4, [0] * 4]
    assert batch.asked.of_rows(batch.frozen.rows).targets[1].tolist() == batch.asked.targets[2].tolist()
    # The weights of records are left out of what the loss is divided by.
    assert batch.total.item() == (1 + 4) + 2 + 3 + (1 + 4)
    others = BatchMaker(TSW).batch([plain])
    assert others.frozen is None and others.asked.alone is None


def test_kinds_as_numbers():
    episodes = [
        replace(each, questions=tuple(replace(asked, kind=kind) for asked in each.questions))
        for each, kind in ((episode(5, (6, 2), (4, 1)), "b"), (episode(5, (6, 2)), "a"), (episode(5, (6, 2)), "other"))
    ]
    assert BatchMaker(TSW, kinds=["a", "b"]).batch(episodes).asked.kinds.tolist() == [2, 2, 1, 0]


def test_batches_without_histories():
    batch = BatchMaker(VARIANTS["SSW"]).batch([Episode(NO_SEGMENTS, (Question([1, 2], 1, (1, 1)),))] * 2)
    (nothing,) = batch.history
    assert nothing.ids.shape == (2, 0) and nothing.lengths.tolist() == [0, 0] and not batch.has_history
    assert batch.shares is None


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        ("message_mean", [[0, 1, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]),
        ("sentence_mean", [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]),
    ],
)
def test_the_units_of_histories(kind, units):
    maker = BatchMaker(DeltaMemConfig(memory_write_granularity=kind))
    shares = np.array(maker.batch([_plain(5), Episode(NO_SEGMENTS, _plain(5).questions)]).shares)
    assert shares.shape == (2, 8, 16) and shares.dtype == np.float32
    units = np.array(units)
    assert np.allclose(shares[0, :3, :5], units / np.maximum(units.sum(axis=1, keepdims=True), 1))
    assert not shares[0, :, 5:].any() and not shares[0, 3:].any() and not shares[1].any()


def test_a_history_without_sentences_writes_nothing():
    unknown = Episode(Segments([1, 2], [0, 0], [-1, -1]), _plain(5).questions)
    maker = BatchMaker(VARIANTS["sentence_mean"])
    assert not maker.batch([unknown]).shares.any()
    assert not maker.batch([unknown, _plain(5)]).shares[0].any()


def test_a_batch_from_plain_tuples():
    for batch in (BatchMaker(VARIANTS["SSW"]).batch([episode(5, (3, 1))]), BatchMaker(TSW).batch([_plain(5)])):
        plain = [tuple(field) if isinstance(field, tuple) else field for field in batch]
        again = Batch.of(*plain)
        assert again == batch
        assert isinstance(again.asked, Asked) and (again.context is None or isinstance(again.context, Asked))


@given(st.integers(0, 10_000))
def test_lengths_are_rounded_up_to_few_sizes(length):
    rounded = _rounded(length)
    assert length <= rounded <= max(length * 5 // 4, -(-length // 8) * 8)
    assert len({_rounded(each) for each in range(length // 2 + 1, length + 1)}) <= 5


# The order


def _plain(length: int) -> Episode:
    return episode(length, (3, 1), context=False)


ORDERS = st.tuples(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5)).filter(lambda each: each[0] >= each[1])


@settings(max_examples=50)
@given(ORDERS, st.data())
def test_every_epoch_is_a_permutation_that_depends_on_the_seed_alone(case, data):
    count, size, seed = case
    episodes = [_plain(length % 7) for length in range(count)]
    order = BatchOrder(episodes, size, seed)
    per_epoch = count // size
    assert order.per_epoch == per_epoch
    batches = list(islice(order.indices(), 3 * per_epoch))
    for epoch in range(3):
        found = Counter(index for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for index in batch)
        assert set(found.values()) == {1} and set(found) <= set(range(count))
        assert sum(found.values()) == per_epoch * size
    assert all(len(batch) == size for batch in batches)
    first = data.draw(st.integers(0, 3 * per_epoch - 1))
    again = BatchOrder(episodes, size, seed).indices(first)
    assert list(islice(again, 3 * per_epoch - first)) == batches[first:]


def test_epochs_and_seeds_differ_and_leave_out_other_episodes():
    episodes = [_plain(3)] * 10
    epochs = [list(islice(BatchOrder(episodes, 4, seed).indices(first), 2)) for seed in (0, 1) for first in (0, 2)]
    assert all(one != other for index, one in enumerate(epochs) for other in epochs[:index])
    seen = {index for batch in islice(BatchOrder(episodes, 4, 0).indices(), 20) for index in batch}
    assert seen == set(range(10))


def test_batches_have_episodes_of_similar_length():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 500, 640).tolist()
    episodes = [_plain(length) for length in lengths]
    batches = list(islice(BatchOrder(episodes, 4, 0).indices(), 160))
    spread = np.mean([max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches])
    assert spread < 40
    # The batches are not sorted by length, neither in all nor within a stretch of 16 batches.
    for places in (range(160), [place % 16 for place in range(160)]):
        assert abs(np.corrcoef(places, [lengths[batch[0]] for batch in batches])[0, 1]) < 0.3


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_a_batch_is_of_one_kind_and_every_epoch_has_all_kinds(kinds, size, seed):
    episodes = [as_read(_plain(index % 5), writes) for index, writes in enumerate(kinds)]
    counts = [count for count in (kinds.count(False), kinds.count(True)) if count]
    held_out = list(BatchOrder(episodes, size, None).indices())
    assert sorted(index for batch in held_out for index in batch) == list(range(len(kinds)))
    assert held_out == sorted(map(sorted, held_out))
    batches = held_out
    if min(counts) >= size:
        order = BatchOrder(episodes, size, seed)
        assert order.per_epoch == sum(count // size for count in counts)
        epoch = list(islice(order.indices(), order.per_epoch))
        assert all(len(batch) == size for batch in epoch)
        assert len({index for batch in epoch for index in batch}) == order.per_epoch * size
        batches = held_out + epoch
    assert all(len({kinds[index] for index in batch}) == 1 for batch in batches)
    maker = BatchMaker(TSW)
    assert all(maker.batch([episodes[index] for index in batch]).writes is kinds[batch[0]] for batch in batches)


def test_kinds_are_mixed_within_an_epoch():
    episodes = [as_read(_plain(3), index < 60) for index in range(120)]
    order = [batch[0] < 60 for batch in islice(BatchOrder(episodes, 4, 0).indices(), 30)]
    assert 3 < sum(order[:15]) < 12


def test_too_few_episodes_of_a_kind():
    episodes = [as_read(_plain(3), index < 3) for index in range(9)]
    with pytest.raises(ValueError, match="3 episodes with questions that are written, fewer than a batch of 4"):
        BatchOrder(episodes, 4, 0)
    with pytest.raises(ValueError, match="there are 0 episodes, fewer than a batch of 4"):
        BatchOrder([], 4, 0)


def test_texts_of_a_batch_have_similar_lengths():
    # Every fourth text is long, and the histories have any length.
    texts = [63 if index % 4 == 0 else 3 for index in range(160)]
    episodes = [episode(5 + index % 9, (length, 1), context=False) for index, length in enumerate(texts)]
    batches = list(islice(BatchOrder(episodes, 4, 0).indices(), 40))
    mixed = [batch for batch in batches if len({texts[index] for index in batch}) > 1]
    # Only the batches at the border between long and short texts, one for each of the 3 stretches of 16 batches.
    assert len(mixed) <= 3


def test_held_out_data_comes_once_in_order():
    order = BatchOrder([_plain(length) for length in (9, 3, 5, 1, 7)], 2, None)
    assert list(order.indices()) == [[0, 1], [2, 3], [4]]
    assert list(order.indices(1)) == [[2, 3], [4]]
    assert list(order.indices(7)) == []


def test_too_few_episodes():
    with pytest.raises(ValueError, match="there are 3 episodes, fewer than a batch of 4; use a smaller --batch-size"):
        BatchOrder([_plain(3)] * 3, 4, 0)


class Process:
    """One of two processes."""

    def __init__(self, rank: int):
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return 2


def test_two_processes_share_the_rows_of_each_batch():
    episodes = [_plain(length) for length in (5, 9, 3, 12, 7, 8, 6, 4)]

    def batches(process: Process | None) -> list[Batch]:
        feed = Feed(BatchMaker(TSW), seed=0, first=3, held_out=-1, between=lambda _: None)
        return list(islice(feed(episodes, 4, 512, loop=True, comm_group=process), 5))

    def texts(*parts: Batch) -> list[list[int]]:
        rows = (zip(each.ids.tolist(), each.lengths.tolist(), strict=True) for part in parts for each in part.history)
        return sorted(ids[:length] for pairs in rows for ids, length in pairs)

    for whole, *parts in zip(batches(None), batches(Process(0)), batches(Process(1)), strict=True):
        assert texts(whole) == texts(*parts)
        assert [len(each.ids) for part in parts for each in part.history] == [2, 2]


@pytest.mark.parametrize("most", [-1, 3, 4, 5])
def test_two_processes_take_the_same_number_of_held_out_batches(most):
    # The second batch has one episode, so that the second process has no share of it.
    written = (False, False, True, False, False, False, False)
    episodes = [as_read(_plain(3), writes) for writes in written]
    talks = []
    for process in (Process(0), Process(1)):
        between = []
        feed = Feed(BatchMaker(TSW), seed=0, first=0, held_out=most, between=between.append)
        batches = feed(episodes, 2, 512, comm_group=process)
        # mlx-lm's trainer does the same.
        count = len(list(islice(batches, None if most < 0 else most)))
        assert count == (4 if most < 0 else min(most, 4)) - process.rank()
        talks.append(len(between))
    assert talks[0] == talks[1]
