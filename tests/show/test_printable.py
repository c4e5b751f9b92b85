"""Characters that a terminal would act on are shown, in any text."""

import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.show.printable import json_document, on_one_line, printable

TEXTS = st.text(st.characters() | st.sampled_from("\x1b\x07\r\n\t\x7f\x9b\u202e\u2066\u200f\ud800\\[]δ"))


@given(TEXTS, st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_nothing_is_left_that_a_terminal_acts_on(text, encoding):
    shown = printable(text, encoding=encoding)
    shown.encode(encoding)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") and each not in "\t\n"]
    assert not [each for each in shown if unicodedata.bidirectional(each) in ("LRE", "RLE", "LRO", "RLO", "PDF", "RLI")]
    assert printable(shown, encoding=encoding) == shown


@given(st.text(st.characters(codec="latin-1", categories=("L", "N", "P", "S", "Zs"))))
def test_other_texts_are_as_they_were(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("a\u202eb\u2067", "a\\u202eb\\u2067"),
        ("name\udcff", "name\\udcff"),
        ("one\ttwo\nthree\rfour", "one\ttwo\nthree\\x0dfour"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
    ],
)
def test_how_they_are_shown(text, shown):
    assert printable(text) == shown


def test_characters_that_the_encoding_lacks():
    assert printable("δ-mem, é", encoding="ascii") == "\\u03b4-mem, \\xe9"
    assert printable("δ-mem, é", encoding="latin-1") == "\\u03b4-mem, é"


def test_an_error_is_on_one_line():
    error = ValueError("Missing 2 parameters:\n  a,\r\n  b\u2028c\td.\n")
    assert on_one_line(error) == "Missing 2 parameters: a, b\\u2028c\\x09d."
    assert len(on_one_line(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda folder: (folder / "none.txt").read_bytes(), "there is no file {}/none.txt; check the name"),
        (
            lambda folder: (folder / "none" / "a.txt").write_text(""),
            "there is no folder {}/none; make it, or name another one",
        ),
        (lambda folder: folder.read_bytes(), "{}: is a directory"),
        (lambda folder: (folder / "none").rename(folder / "b"), "{0}/none to {0}/b: no such file or directory"),
        (lambda folder: os.close(9999), "[Errno 9] Bad file descriptor"),
    ],
)
def test_an_error_of_the_system_names_the_file(tmp_path, action, expected):
    with pytest.raises(OSError) as caught:
        action(tmp_path)
    assert on_one_line(caught.value) == expected.format(tmp_path)


@given(st.dictionaries(TEXTS, TEXTS | st.floats(allow_nan=False, allow_infinity=False)))
def test_a_document_is_read_as_it_was(document):
    text = json_document(document)
    assert json.loads(text) == document
    assert printable(text, keep="") == text
