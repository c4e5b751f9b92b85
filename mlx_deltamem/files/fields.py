"""Read the fields of rows of data sets. A field that is null is absent, and no value is made a text that is not one.

A table has every column in every row. Where a row has no value, files that were a table have null, or NaN in columns of
numbers, and a whole number may be written as 3.0 there.
"""

import math
from collections.abc import Mapping

from mlx_deltamem.files.jsonl import Json, kind_of
from mlx_deltamem.files.text import check_text

Row = dict[str, Json]

_LONGEST_SHOWN = 60
# From here on, not every whole number is a float.
_LARGEST_WHOLE_FLOAT = 2.0**53


def is_absent(value: Json) -> bool:
    """Whether a value stands for no value: null, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def given_fields(value: Json) -> Row:
    """The fields of an object that have a value.

    Raises:
        ValueError: The value is not an object.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{kind_of(value)} instead of an object")
    return {name: each for name, each in value.items() if not is_absent(each)}


def given_items(value: Json) -> list[Json]:
    """The items of a list that have a value.

    Raises:
        ValueError: The value is not a list.
    """
    if not isinstance(value, list):
        raise ValueError(f"{kind_of(value)} instead of a list")
    return [each for each in value if not is_absent(each)]


def as_text(value: Json, name: str) -> str:
    """A value that must be a text.

    Raises:
        ValueError: It is not, or has a character that cannot be in a text. The error begins with `name`.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {kind_of(value)}; expected a text")
    return check_text(value, name)


def as_answer(value: Json, name: str) -> str:
    """A text, or a number as it is written: 2022 and 2022.0 give "2022".

    Raises:
        ValueError: The value is neither, or is a blank text.
    """
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if value.is_integer() and abs(value) < _LARGEST_WHOLE_FLOAT else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return repr(value)
    text = as_text(value, name)
    if not text.strip():
        raise ValueError(f"{name} is blank; expected a text or a number")
    return text


def as_whole_number(value: Json) -> int | None:
    """A whole number, also if a table wrote it as 3.0; None if the value is not one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_field(row: Mapping[str, Json], name: str) -> str:
    """A field of `given_fields` that must be a text.

    Raises:
        KeyError: There is no such field.
        ValueError: It is not a text.
    """
    return as_text(row[name], f"{name!r}")


def shown(value: object) -> str:
    """A value from a file for an error message: on one line, without control characters, not too long."""
    # The text of a long number or of a large list can be very long.
    text = ascii(value) if isinstance(value, str | int | float) else kind_of(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
