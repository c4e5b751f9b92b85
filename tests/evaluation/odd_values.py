"""Change JSON values as tables, programs and damaged files do: fill absent fields, and replace any part."""

import json
from collections.abc import Iterator
from copy import deepcopy

ODD = (
    None,
    float("nan"),
    float("inf"),
    True,
    7,
    2.0,
    10**400,
    "",
    " ",
    "\ud800",
    "a\x00b",
    "\ufeff\x1b[2J",
    [],
    [None],
    [[None]],
    {},
    {"a": None},
    "D" + "9" * 5000 + ":1",
)


def table_rows(rows: list, absent: object = None) -> list:
    """Rows as a table has them: every object has all fields that an object at the same place has in any row."""
    return [_filled(row, _places(rows), (), absent) for row in rows]


def _places(rows: list) -> dict[tuple, dict]:
    """By the place of an object, the names of all its fields."""
    names: dict[tuple, dict] = {}

    def visit(value: object, place: tuple) -> None:
        if isinstance(value, dict):
            names.setdefault(place, {}).update(dict.fromkeys(value))
            for name, each in value.items():
                # The sessions of LoCoMo's conversations are columns of one kind.
                visit(each, (*place, name.rstrip("0123456789")))
        elif isinstance(value, list):
            for each in value:
                visit(each, (*place, "[]"))

    for row in rows:
        visit(row, ())
    return names


def _filled(value: object, names: dict[tuple, dict], place: tuple, absent: object) -> object:
    if isinstance(value, dict):
        within = {name: (*place, name.rstrip("0123456789")) for name in names[place]}
        return {name: _filled(value[name], names, within[name], absent) if name in value else absent for name in within}
    if isinstance(value, list):
        return [_filled(each, names, (*place, "[]"), absent) for each in value]
    return value


def paths(value: object) -> Iterator[tuple]:
    """The paths of all values within a JSON value."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (key,)
        yield from ((key, *rest) for rest in paths(each))


def changed(value: list, path: tuple, odd: object) -> list:
    """A copy in which the value at a path is another."""
    copy = deepcopy(value)
    found = copy
    for key in path[:-1]:
        found = found[key]
    found[path[-1]] = odd
    return copy


def check_texts(questions: list) -> None:
    """All texts can be written, and no value became the text of a Python object."""
    for question in questions:
        text = json.dumps([vars(question)], ensure_ascii=False, default=str)
        text.encode()
        for never in ("None", "nan", "NaN", "True", "False", "{'", "['", "\\u0000"):
            assert never not in text, (never, question)


def without_nulls(value: object) -> object:
    """A JSON value without the fields that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
