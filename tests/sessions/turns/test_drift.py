import math

import mlx.core as mx
import pytest

from mlx_deltamem.sessions.turns.drift import Drift, changes, half_life


def test_half_life():
    assert half_life(0.5) == pytest.approx(1.0)
    assert half_life(0.5**0.1) == pytest.approx(10.0)
    assert half_life(1.0) == math.inf
    assert half_life(0.0) == 0.0
    assert math.isnan(half_life(math.nan))
    assert Drift({3: 0.5}, {3: 0.1}).half_life == {3: pytest.approx(1.0)}


def test_changes():
    before = [mx.ones((1, 1, 2, 2)), mx.zeros((1, 0, 0, 0)), mx.zeros((1, 1, 2, 2)), mx.ones((1, 1, 2, 2))]
    after = [mx.ones((1, 1, 2, 2)), mx.zeros((1, 0, 0, 0)), mx.ones((1, 1, 2, 2)), -mx.ones((1, 1, 2, 2))]
    assert changes(before, after) == {0: 0.0, 2: pytest.approx(1.0), 3: pytest.approx(2.0)}
    assert changes([mx.zeros((1, 1, 2, 2))], [mx.zeros((1, 1, 2, 2))]) == {0: 0.0}


def test_the_query_beside_a_shifted_key_is_not_a_change():
    """With a key shift, the last row of a state is not compared."""
    before, after = mx.ones((1, 1, 3, 2)), mx.ones((1, 1, 3, 2))
    after[:, :, 2] = 5.0
    assert changes([before], [after]) == {0: 0.0}
    after[:, :, 0] = -1.0
    assert changes([before], [after]) == changes([before[:, :, :2]], [after[:, :, :2]])
