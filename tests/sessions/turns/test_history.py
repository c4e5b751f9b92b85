import pytest

from mlx_deltamem.sessions.turns.history import parse_history


@pytest.mark.parametrize(("given", "expected"), [("full", "full"), ("none", "none"), (7, 7), ("12", 12), ("0012", 12)])
def test_histories(given, expected):
    assert parse_history(given) == expected


LONG = [2**63, str(2**63), "9" * 5000, 10**5000, "x" * 999]


@pytest.mark.parametrize(
    "given",
    ["some", "", 0, -3, "0", "-1", "1.5", 1.5, True, None, "\u00b2", *LONG],
    ids=lambda given: type(given).__name__,
)
def test_histories_that_are_refused(given):
    with pytest.raises(ValueError, match="expected 'full', 'none' or a number of tokens >= 1") as error:
        parse_history(given)
    assert len(str(error.value)) < 250
