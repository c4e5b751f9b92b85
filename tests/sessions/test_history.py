import pytest

from mlx_deltamem.sessions.history import parse_history


@pytest.mark.parametrize(("given", "expected"), [("full", "full"), ("none", "none"), (7, 7), ("12", 12)])
def test_histories(given, expected):
    assert parse_history(given) == expected


@pytest.mark.parametrize("given", ["some", "", 0, -3, "0", "-1", "1.5", 1.5, True, None, "\u00b2"])
def test_histories_that_are_refused(given):
    with pytest.raises(ValueError, match="expected 'full', 'none' or a number of tokens >= 1"):
        parse_history(given)
