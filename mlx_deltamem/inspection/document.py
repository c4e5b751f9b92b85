"""Reports as JSON documents."""

import math
from dataclasses import fields, is_dataclass

import numpy as np

# For fields of a report that its document leaves out.
NOT_IN_DOCUMENT = {"document": False}

# What a float32 holds; more digits are noise of its conversion.
_DIGITS = 6


def as_document(value: object) -> object:
    """A report, or a part of one, as what `json.dumps(..., allow_nan=False)` takes.

    Dataclasses become objects under their fields' names, arrays nested lists of numbers with 6 digits, keys texts, and
    numbers that are not finite null.

    Raises:
        TypeError: It is nothing of a report.
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
    raise TypeError(f"a {type(value).__name__} cannot be in a report")


def _rounded(number: float) -> float | None:
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None
