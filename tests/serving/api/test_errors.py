"""Answers and errors as JSON."""

import json
import math

from mlx_deltamem.serving.api.errors import json_bytes


def test_numbers_that_are_not_finite_become_null():
    """A memory that has overflowed can then still be looked at."""
    value = {"norms": {"1": math.inf}, "heat": [[1.5, math.nan], (-math.inf, 2)], "name": "anna", "on": True}
    expected = {"norms": {"1": None}, "heat": [[1.5, None], [None, 2]], "name": "anna", "on": True}
    assert json.loads(json_bytes(value)) == expected
