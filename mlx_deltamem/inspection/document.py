"""Reports as JSON documents."""

import math
from dataclasses import fields, is_dataclass

import numpy as np

# The metadata of a field that the document leaves out.
NOT_IN_DOCUMENT = {"document": False}

# A float32 holds no more digits than these.
_DIGITS = 6


def as_document(value: object) -> object:
    """Turn a report, or a part of one, into a value for `json.dumps(..., allow_nan=False)`.

    A dataclass becomes an object with the names of its fields. An array becomes nested lists of numbers with 6 digits.
    Keys become texts. Numbers that are not finite become null.

    Raises:
        TypeError: The value has a type that no report holds.
    """
    if is_dataclass(value):
        shown = (field.name for field in fields(value) if field.metadata.get("document", True))
        return {name: as_document(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(key): as_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_document(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_rounded(item) if value.ndim == 1 else as_document(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be in a report; expected a dataclass, a dict, a list or a number")


def _rounded(number: float) -> float | None:
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None
