"""The check of texts: what is a text, what is refused, and what the error says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.files.text import check_text, text_problem


@pytest.mark.parametrize("text", ["", "a\tb\r\n", "\x1b[31m", "\x01\x7f\x85", "δ 😀 é", "a\ufeffb"])
def test_texts_stay_as_they_are(text):
    assert check_text(text, "it") == text and text_problem(text) == ("", "")


def test_a_byte_order_mark_at_the_beginning_is_left_out():
    assert check_text("\ufeffHi", "it") == "Hi"
    assert check_text("\ufeff\ufeffHi", "it") == "\ufeffHi"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ab\ud800", "has half a character (a lone surrogate, U+D800 at character 3)"),
        ("\udfff", "has half a character (a lone surrogate, U+DFFF at character 1)"),
        ("\ufeff\x00", "has a NUL character (U+0000 at character 2)"),
    ],
)
def test_what_is_not_text_is_refused_by_name_kind_and_place(text, problem):
    with pytest.raises(ValueError) as told:
        check_text(text, "the system prompt")
    assert str(told.value).startswith(f"the system prompt {problem}; expected text: ")
    str(told.value).encode()


@given(st.text(st.characters() | st.sampled_from("\x00\ud800\udc00\ufeff")))
def test_a_checked_text_can_be_written(text):
    try:
        checked = check_text(text, "it")
    except ValueError as error:
        assert "\x00" in text or any("\ud800" <= each <= "\udfff" for each in text)
        assert "\n" not in str(error)
    else:
        assert text in (checked, "\ufeff" + checked) and "\x00" not in checked
        checked.encode()
