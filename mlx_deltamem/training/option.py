"""Options of a run: fields of a dataclass that know their help text and their range."""

import sys
from dataclasses import Field, field, fields

Value = bool | int | float | str

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def option(
    default: Value,
    text: str,
    least: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Field:
    """A field with a help text, and what it may be: a number from `least` on or above `above`, or one of `choices`."""
    return field(default=default, metadata={"help": text, "least": least, "above": above, "choices": choices})


def check_options(options: object) -> None:
    """Check the fields of a dataclass that were made with `option`.

    Raises:
        ValueError: One is of another type than its default, or out of range.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if not _allowed(value, each):
            raise ValueError(f"{flag(each.name)} is {value!r}; expected {_expected(each)}")


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _allowed(value: object, option: Field) -> bool:
    if isinstance(option.default, bool):
        return isinstance(value, bool)
    if isinstance(option.default, str):
        return value in option.metadata["choices"] if option.metadata["choices"] else isinstance(value, str)
    return _is_number(value, whole=isinstance(option.default, int)) and _in_range(value, option)


def _is_number(value: object, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    if whole:
        return isinstance(value, int)
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _in_range(value: int | float, option: Field) -> bool:
    least, above = option.metadata["least"], option.metadata["above"]
    return (least is None or value >= least) and (above is None or value > above)


def _expected(option: Field) -> str:
    least, above = option.metadata["least"], option.metadata["above"]
    if option.metadata["choices"]:
        return " or ".join(option.metadata["choices"])
    name = _KINDS[type(option.default)]
    if least is not None:
        return f"{name} from {least:g} on"
    return name if above is None else f"{name} above {above:g}"
