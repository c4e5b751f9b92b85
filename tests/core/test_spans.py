import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem import DeltaMemConfig
from mlx_deltamem.core.spans import Spans

MESSAGES = DeltaMemConfig(memory_write_granularity="message_mean")
SENTENCES = DeltaMemConfig(memory_write_granularity="sentence_mean")


def test_units_are_means_in_ascending_order_of_ids():
    units = Spans([[5, 5, -1, 2], [-1, -1, -1, 7]], None, MESSAGES).units(2, 4, None)
    assert np.array(units.weights).tolist() == [[[0, 0, 0, 1], [0.5, 0.5, 0, 0]], [[0, 0, 0, 1], [0, 0, 0, 0]]]
    assert np.array(units.mask).tolist() == [[True, True], [True, False]]


def test_padding_belongs_to_no_unit():
    units = Spans([[3, 3, 3]], None, MESSAGES).units(1, 3, mx.array([[False, True, True]]))
    assert np.array(units.weights).tolist() == [[[0, 0.5, 0.5]]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32", "uint64"])
def test_padding_belongs_to_no_unit_whatever_the_type_of_the_ids(dtype):
    ids = mx.array([[0, 1, 1], [0, 0, 0]]).astype(getattr(mx, dtype))
    units = Spans(ids, None, MESSAGES).units(2, 3, mx.array([[True, True, True], [False, True, True]]))
    assert np.array(units.weights).tolist() == [[[1, 0, 0], [0, 0.5, 0.5]], [[0, 0.5, 0.5], [0, 0, 0]]]
    assert np.array(units.mask).tolist() == [[True, True], [True, False]]


def test_all_negative_ids_stand_for_no_span():
    units = Spans([[0, 1, 1], [0, -2, -2]], None, MESSAGES).units(2, 3, None)
    assert np.array(units.mask).tolist() == [[True, True], [True, False]]


def test_a_sentence_needs_a_message():
    units = Spans([[-1, 0, 0]], [[4, 4, 5]], SENTENCES).units(1, 3, None)
    assert np.array(units.weights).tolist() == [[[0, 1, 0], [0, 0, 1]]]


def test_no_units_at_all():
    assert Spans([[-1, -1]], None, MESSAGES).units(1, 2, None) is None
    assert Spans([[1, 1]], None, MESSAGES).units(1, 2, mx.array([[False, False]])) is None


@pytest.mark.parametrize(
    ("messages", "sentences", "config", "message"),
    [
        ([[0, 1], [0]], None, MESSAGES, "rows of different lengths"),
        ([0, 1], None, MESSAGES, "expected \\[B, T\\] integers"),
        ([[0.5, 1]], None, MESSAGES, "expected \\[B, T\\] integers"),
        ([["a"]], None, MESSAGES, "expected \\[B, T\\] integers"),
        ([[0, 1]], None, SENTENCES, "needs them"),
        ([[0, 1]], [[0]], SENTENCES, "expected one shape"),
    ],
)
def test_wrong_ids_are_refused(messages, sentences, config, message):
    with pytest.raises(ValueError, match=message):
        Spans(messages, sentences, config)


def test_ids_for_other_tokens_are_refused():
    with pytest.raises(ValueError, match="one id for each token"):
        Spans([[0, 1]], None, MESSAGES).units(1, 3, None)
