"""Options of a run: fields of a dataclass that know their help text and their range."""

from dataclasses import field, fields


def option(
    default: bool | int | float | str,
    text: str,
    least: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> object:
    """A field with a help text, and what it may be: a number from `least` on or above `above`, or one of `choices`."""
    return field(default=default, metadata={"help": text, "least": least, "above": above, "choices": choices})


def check_options(options: object) -> None:
    """Check the fields of a dataclass that were made with `option`.

    Raises:
        ValueError: One is of another type than its default, or out of range.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if not _allowed(value, each.default, **{name: each.metadata[name] for name in ("least", "above", "choices")}):
            raise ValueError(f"--{each.name.replace('_', '-')} is {value!r}; expected {_expected(each)}")


def _allowed(
    value: object, default: object, least: float | None, above: float | None, choices: tuple[str, ...]
) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return value in choices if choices else isinstance(value, str)
    if not (whole or (isinstance(default, float) and isinstance(value, float))):
        return False
    return (least is None or value >= least) and (above is None or value > above)


def _expected(each: object) -> str:
    kind, least, above = type(each.default).__name__, each.metadata["least"], each.metadata["above"]
    if each.metadata["choices"]:
        return " or ".join(each.metadata["choices"])
    name = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}[kind]
    if least is not None:
        return f"{name} from {least:g} on"
    return name if above is None else f"{name} above {above:g}"
