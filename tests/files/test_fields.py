"""Fields of rows: what is absent, and which values are texts, answers and numbers."""

import math

import pytest

from mlx_deltamem.files.fields import (
    as_answer,
    as_text,
    as_whole_number,
    given_fields,
    given_items,
    is_absent,
    shown,
    text_field,
)

NAN = float("nan")


def test_null_and_nan_are_absent_and_nothing_else_is():
    assert is_absent(None) and is_absent(NAN)
    assert not any(map(is_absent, (0, 0.0, False, "", "None", "nan", [], {}, math.inf)))
    assert given_fields({"a": None, "b": 0, "c": NAN, "d": ""}) == {"b": 0, "d": ""}
    assert given_items([None, 0, NAN, [None]]) == [0, [None]]


@pytest.mark.parametrize("value", [None, 3, "x", True])
def test_other_kinds_are_named(value):
    with pytest.raises(ValueError, match=r"(nothing|a number|a text|true or false) instead of an object"):
        given_fields(value)
    with pytest.raises(ValueError, match=r"(nothing|a number|a text|true or false) instead of a list"):
        given_items(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x ", "x "),
        (2022, "2022"),
        (2022.0, "2022"),
        (-1.5, "-1.5"),
        (0, "0"),
        (10**400, "1" + "0" * 400),
        (1e300, "1e+300"),
    ],
)
def test_an_answer_is_a_text_or_a_number_as_it_is_written(value, text):
    assert as_answer(value, "it") == text


@pytest.mark.parametrize("value", [None, True, NAN, math.inf, [], ["x"], {}, "", " \n", "\ud800", "\x00"])
def test_no_other_value_is_made_an_answer(value):
    with pytest.raises(ValueError, match=r"^it (is|has) "):
        as_answer(value, "it")


@pytest.mark.parametrize("value", [None, True, 3, 2.0, [], {}, "\ud800"])
def test_no_other_value_is_made_a_text(value):
    with pytest.raises(ValueError, match=r"^it (is|has) .*; expected a? ?text"):
        as_text(value, "it")
    with pytest.raises(ValueError, match=r"^'name' (is|has) "):
        text_field({"name": value}, "name")


def test_whole_numbers():
    assert [as_whole_number(value) for value in (3, 3.0, -1)] == [3, 3, -1]
    assert {as_whole_number(value) for value in (True, 3.5, NAN, math.inf, "3", None, [3])} == {None}


def test_values_are_shown_on_one_short_line():
    assert shown("a\n\x1b") == r"'a\n\x1b'" and shown([1, 2]) == "a list" and shown("\ud800") == r"'\ud800'"
    assert len(shown("x" * 10_000)) < 100 and len(shown(10**4000)) < 100
