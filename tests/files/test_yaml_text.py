"""YAML that anyone may have written is read, or refused in one line and a moment."""

import time

import pytest

from mlx_deltamem.files.yaml_text import parse_yaml


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_what_people_write_is_read():
    text = "a: &a {b: 1}\nc: [*a, *a]\nd:\n  <<: *a\n  e: 2024-01-02\nf: yes\n"
    found = parse_yaml(text)
    assert found["c"] == [{"b": 1}, {"b": 1}]
    assert found["d"]["b"] == 1
    assert (found["f"], found["d"]["e"].year) == (True, 2024)
    assert parse_yaml("") is None
    assert parse_yaml(laughs(4))["a3"]


REFUSED = {
    "deep list": ("[" * 100_000, "nested too deeply"),
    "deep mapping": ("{a: " * 50_000, "nested too deeply"),
    "deep block": ("- " * 100_000, "nested too deeply"),
    "deep keys": ("? " * 100_000, "nested too deeply"),
    "bomb": (laughs(30), "more than 50,000 values"),
    "bomb of merges": (
        "a: &a {x: 1}\n" + "".join(f"k{i}: {{<<: [{'*a, ' * 300}]}}\n" for i in range(200)),
        "more than",
    ),
    "within itself": ("&a [*a]", "the alias a stands for what it is a part of"),
    "long": ("a: " + "x" * 300_000, "has 300,003 characters"),
    "many": ("[" + "1," * 100_000 + "]", "more than 50,000 values"),
    "class": ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "digits": ("a: " + "9" * 5000, "a number of too many digits"),
    "sexagesimal": ("a: " + "1:" * 20_000 + "1", "a number of too many digits"),
    "hexadecimal": ("a: 0x" + "f" * 20_000, "a number of too many digits"),
    "date": ("a: 2024-99-99", "month must be in 1..12"),
    "empty number": ("a: !!int ''", "IndexError"),
    "key": ("? [1]\n: 2", "unhashable key"),
    "surrogate": ("a: \ud800", "special characters are not allowed"),
    "two": ("a: 1\n---\nb: 2", "single document"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_writes_is_refused(case):
    text, expected = REFUSED[case]
    began = time.process_time()
    with pytest.raises(ValueError, match=expected) as error:
        parse_yaml(text)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    assert time.process_time() - began < 5
