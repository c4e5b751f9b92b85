"""Numbers that a user types."""

import pytest

from mlx_deltamem.cli.numbers import typed_number


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("12", 12), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_numbers(text, number):
    assert typed_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1_000", " 1", "²", "٣", "9" * 19, "9" * 5000])
def test_what_is_no_number_of_a_chat(text):
    assert typed_number(text) is None
