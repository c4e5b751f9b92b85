import pytest

from mlx_deltamem.training.grouping import rows_of_passes


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([50, 50, 50], [None]),
        ([0, 0], [None]),
        ([50, 0, 52], [[0, 2]]),
        # A second pass would save 60 tokens of padding, fewer than it costs.
        ([100, 40], [None]),
        ([100, 30], [[1], [0]]),
        ([20, 100, 0, 22, 90], [[0, 3], [4, 1]]),
    ],
)
def test_short_texts_have_a_pass_of_their_own_where_that_saves_enough(lengths, expected):
    assert rows_of_passes(lengths) == expected
