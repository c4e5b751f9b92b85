import pytest

from mlx_deltamem.evaluation.tasks.answers import (
    first_line,
    locomo_tokens,
    porter_stem,
    span_tokens,
    squad_tokens,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "squad", "span"),
    [
        ("The U.S.", ["us"], ["u", "s"]),
        ("a well-known  Film", ["wellknown", "film"], ["well", "known", "film"]),
        ("Anna and the cat", ["anna", "and", "cat"], ["anna", "and", "cat"]),
        ("A-Team", ["ateam"], ["team"]),
        ("snake_case", ["snakecase"], ["snake_case"]),
        ("it’s", ["it’s"], ["it", "s"]),
        (" \n ", [], []),
    ],
)
def test_words_of_the_two_ways(text, squad, span):
    assert (squad_tokens(text), span_tokens(text)) == (squad, span)


def test_stems_of_locomo():
    pytest.importorskip("nltk")
    assert locomo_tokens("A cat, the dogs AND an owl!") == ["cat", "dog", "owl"]
    assert locomo_tokens("á la María") == ["a\u0301", "la", "mari\u0301a"]
    assert locomo_tokens("1,000 well-known") == ["1000", "wellknown"]
    assert locomo_tokens("“the” boys") == ["“", "”", "boy"]
    # NLTK's extensions of Porter's algorithm.
    words = ("buy", "birthday", "age", "are", "dying", "skies", "was")
    assert [porter_stem()(word) for word in words] == ["buy", "birthday", "age", "are", "die", "sky", "wa"]


def test_f1_of_words():
    assert token_f1(["a"], ["a"]) == 1
    assert token_f1([], []) == token_f1(["a"], []) == token_f1([], ["a"]) == 0
    assert token_f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(2 / 5)
    assert token_f1(["a", "a", "b"], ["a", "a"]) == pytest.approx(4 / 5)


def test_the_first_line_is_not_blank():
    assert first_line(" \n\t\n one \n two") == "one"
    assert first_line(" \n") == first_line("") == ""
