"""The values that each kind of option may have, as numbers of the library and as texts of the command line."""

import argparse
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem.options.rule import (
    BITS,
    COUNT,
    GROUP_SIZE,
    POSITIVE,
    REPLY_LENGTH,
    SEED,
    SHARE,
    STEP,
    TEMPERATURE,
    Rule,
    shown,
)

RULES = {
    "seed": SEED,
    "count": COUNT,
    "positive": POSITIVE,
    "share": SHARE,
    "reply": REPLY_LENGTH,
    "temperature": TEMPERATURE,
    "bits": BITS,
    "group": GROUP_SIZE,
    "any number": Rule(float),
    "above": Rule(float, above=0),
}
WILD = [
    "",
    " ",
    "x",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e-400",
    "9" * 5000,
    "1" + "0" * 20,
    "٣",
    "0x10",
    "\x1b[2J",
]


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (SEED, (0, 2**64 - 1), (-1, 2**64, 10**20, 1.0, True, "1", None, math.nan)),
        (COUNT, (0, 2**31 - 1), (-1, 2**31, 10**20, 1.5)),
        (POSITIVE, (1, 2**31 - 1), (0, -1, 10**20, 1.0, False)),
        (SHARE, (0, 1, 0.5, 0.0), (-0.1, 1.1, math.nan, math.inf, True, "0.5")),
        (REPLY_LENGTH, (1, -1, 256), (0, -7, -2, 2.5, "x", 10**20)),
        (STEP, (1, 2**63 - 1), (0, -1, 2**63, 1.0, True)),
        (TEMPERATURE, (0, 0.0, 1e-6, 1.0, 1e30), (-0.1, 1e-7, 1e-320, math.nan, math.inf, 1e300)),
        (BITS, (2, 3, 4, 5, 6, 8), (-8, 0, 1, 7, 16, 10**20, True, 4.0)),
        (GROUP_SIZE, (32, 64, 128), (0, -64, 16, 48, 256)),
        (Rule(float), (0, -1e30, 5), (math.nan, -math.inf, 1e300, 10**400)),
        (Rule(float, above=0), (1e-300, 3e38), (0, -1, 1e39)),
    ],
)
def test_the_ends_of_ranges(rule, allowed, refused):
    assert all(map(rule.allows, allowed))
    assert not any(map(rule.allows, refused))
    for value in refused:
        with pytest.raises(ValueError, match=r"^--x is .*; expected ") as caught:
            rule.check("--x", value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (SEED, "a whole number from 0 to 2**64 - 1"),
        (POSITIVE, "a whole number from 1 to 2**31 - 1"),
        (Rule(int, least=1, most=1024), "a whole number from 1 to 1,024"),
        (SHARE, "a number from 0 to 1"),
        (REPLY_LENGTH, "a whole number from 1 to 2**63 - 1, or -1 for no limit"),
        (TEMPERATURE, "a number from 1e-06 to 3.4e+38, or 0 for the likeliest token"),
        (Rule(float, above=0), "a number above 0, at most 3.4e+38"),
        (Rule(int), "a whole number from -(2**31 - 1) to 2**31 - 1"),
        (BITS, "2 or 3 or 4 or 5 or 6 or 8"),
        (Rule(int, several=True, least=0, count=2), "2 values, each a whole number from 0 to 2**31 - 1"),
        (Rule(str, several=True, distinct=True), "one or more different values, each a text"),
    ],
)
def test_a_range_in_words(rule, words):
    assert rule.expected == words


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30)
@given(text=st.text(max_size=12) | st.sampled_from(WILD) | st.integers().map(str) | st.floats().map(repr))
def test_any_text_gives_an_allowed_number_or_one_line(name, text):
    rule = RULES[name]
    try:
        value = rule(text)
    except argparse.ArgumentTypeError as error:
        assert str(error).startswith("is ") and str(error).isprintable() and len(str(error)) < 250
    else:
        assert type(value) is rule.kind and rule.allows(value)


def test_values_that_are_equal_are_no_distinct_ones():
    rule = Rule(int, several=True, distinct=True, count="*")
    assert rule.allows(()) and rule.allows((1, 2)) and not rule.allows((1, 1)) and not rule.allows([1, 2])


@pytest.mark.parametrize("value", [10**5000, "x" * 10_000, {"a": [1] * 1000}], ids=["int", "str", "dict"])
def test_a_long_value_is_shown_in_part(value):
    assert len(shown(value)) < 120
