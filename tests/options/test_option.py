"""Options of a dataclass: the values that they may have, and their arguments on a command line."""

import argparse
from dataclasses import dataclass

import pytest

from mlx_deltamem.options.arguments import add_options
from mlx_deltamem.options.option import check_options, option, options_of, taken_from
from mlx_deltamem.options.rule import Rule


@dataclass(frozen=True)
class Baking:
    where: str = "oven"
    loaves: int = option(2, "Loaves.", least=1)
    heat: float = option(220.0, "Heat.", above=0)
    flour: str = option("rye", "Flour.", ("rye", "wheat"))
    name: str = option("", "Name.")
    salted: bool = option(True, "Salt.")
    rests: tuple[int, ...] = option((30, 10), "Minutes of rest.", least=0, count=2)
    seeds: tuple[str, ...] = option((), "Seeds.", ("poppy", "sesame"))
    pauses: tuple[int, ...] = option((), "Pauses.", kind=int, count=2)
    note: str | None = option(None, "Note.")
    guests: int = option(-1, "Guests.", rule=Rule(int, least=1, most=9, other=(-1, "whoever comes")))

    def __post_init__(self) -> None:
        check_options(self, "bake-")


@pytest.mark.parametrize(
    "given",
    [
        {"loaves": 1, "heat": 5, "flour": "wheat", "name": "x", "salted": False},
        {"rests": (0, 0), "seeds": ("sesame",), "pauses": (1, 2), "note": ""},
        {"where": 5},
    ],
)
def test_allowed_values(given):
    assert taken_from(given | {"unknown": 1}, Baking) == Baking(**given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loaves": 0}, "--bake-loaves is 0; expected a whole number from 1 to 2**31 - 1"),
        ({"loaves": True}, "--bake-loaves is True; expected a whole number from 1 to 2**31 - 1"),
        ({"loaves": 2.0}, "--bake-loaves is 2.0; expected a whole number from 1 to 2**31 - 1"),
        ({"loaves": None}, "--bake-loaves is None; expected a whole number from 1 to 2**31 - 1"),
        ({"heat": 0}, "--bake-heat is 0; expected a number above 0, at most 3.4e+38"),
        ({"heat": float("nan")}, "--bake-heat is nan; expected a number above 0, at most 3.4e+38"),
        ({"heat": 10**400}, "; expected a number above 0, at most 3.4e+38"),
        ({"flour": "oat"}, "--bake-flour is 'oat'; expected rye or wheat"),
        ({"guests": 0}, "--bake-guests is 0; expected a whole number from 1 to 9, or -1 for whoever comes"),
        ({"loaves": 0, "name": 3}, "from 1 to 2**31 - 1; also --bake-name is 3; expected a text"),
        ({"name": 3}, "--bake-name is 3; expected a text"),
        ({"salted": 1}, "--bake-salted is 1; expected true or false"),
        ({"rests": (1,)}, "--bake-rests is (1,); expected 2 values, each a whole number from 0 to 2**31 - 1"),
        ({"rests": (1, -1)}, "--bake-rests is (1, -1); expected 2 values, each a whole number from 0 to 2**31 - 1"),
        ({"rests": 3}, "--bake-rests is 3; expected 2 values, each a whole number from 0 to 2**31 - 1"),
        ({"rests": ()}, "--bake-rests is (); expected 2 values, each a whole number from 0 to 2**31 - 1"),
        ({"seeds": ("flax",)}, "--bake-seeds is ('flax',); expected one or more values, each poppy or sesame"),
    ],
)
def test_values_that_are_refused(given, problem):
    with pytest.raises(ValueError) as caught:
        Baking(**given)
    assert problem in str(caught.value)


def test_only_declared_fields_are_options():
    assert {each.name for each in options_of(Baking)} == set(Baking.__dataclass_fields__) - {"where"}


def test_arguments():
    parser = argparse.ArgumentParser()
    add_options(parser, Baking, "bake-")
    assert set(vars(parser.parse_args([])).values()) == {None}
    asked = ["--bake-loaves", "3", "--bake-heat", "1e2", "--no-bake-salted", "--bake-rests", "1", "2"]
    asked += ["--bake-seeds", "poppy", "sesame"]
    given = {name: value for name, value in vars(parser.parse_args(asked)).items() if value is not None}
    assert given == {
        "bake_loaves": 3,
        "bake_heat": 100.0,
        "bake_salted": False,
        "bake_rests": [1, 2],
        "bake_seeds": ["poppy", "sesame"],
    }
    text = " ".join(parser.format_help().split())
    assert "--bake-loaves INT Loaves. (default: 2)" in text
    assert "--bake-rests INT INT Minutes of rest. (default: 30 10)" in text
    assert "--bake-flour {rye,wheat} Flour. (default: rye)" in text
    assert "--bake-note STR Note. (default: none)" in text
    assert "Seeds. (default: any)" in text
    with pytest.raises(SystemExit):
        parser.parse_args(["--bake-flour", "oat"])
