"""Options as fields of dataclasses: each has a default, a help text and a rule for the values that it may have."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

from mlx_deltamem.options.rule import Count, Rule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Group = TypeVar("Group", bound="DataclassInstance")

_KEY = "option"
# An error message lists at most this many problems.
_LISTED = 8


@dataclass(frozen=True)
class Option:
    """An option of a dataclass.

    Attributes:
        name: The name of the field.
        default: Its default.
        help: The help text.
        rule: The values that it may have.
    """

    name: str
    default: object
    help: str
    rule: Rule


def option(
    default: T,
    help: str = "",
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    kind: type = str,
    count: Count = "+",
    rule: Rule | None = None,
) -> T:
    """Declare a field of a dataclass as an option.

    Args:
        default: The default. A tuple declares an option of several values; None declares one that may be None.
        help: The help text.
        choices: The values allowed; empty: all of the type.
        least: The smallest number allowed.
        above: Every number must be larger than this.
        kind: The type of a value, used where the default does not show it: None or an empty tuple.
        count: How many values an option of several values has: a number, "+" for one or more, "*" for any number.
        rule: The values that it may have, if the arguments above do not give them.

    Returns:
        To a type checker, the default; at run time, the `dataclasses.Field`.
    """
    if rule is None:
        rule = Rule(
            kind=_kind_of(default, kind),
            several=isinstance(default, tuple),
            optional=default is None or default == (),
            least=least,
            above=above,
            choices=choices,
            count=count,
        )
    return field(default=default, metadata={_KEY: (help, rule)})


def _kind_of(default: object, kind: type) -> type:
    if isinstance(default, tuple):
        return type(default[0]) if default else kind
    return kind if default is None else type(default)


def options_of(kind: "DataclassInstance | type[DataclassInstance]") -> Iterator[Option]:
    """The options of a dataclass; fields that are not options are left out."""
    for each in fields(kind):
        if _KEY in each.metadata:
            yield Option(each.name, each.default, *each.metadata[_KEY])


def check_options(options: "DataclassInstance", prefix: str = "") -> None:
    """Check the values of all options of a dataclass.

    Args:
        options: The dataclass.
        prefix: What its options begin with on the command line.

    Raises:
        ValueError: A value has the wrong type or is out of range. The message names all such options.
    """
    raise_all(
        [each.rule.problem(flag(prefix + each.name), getattr(options, each.name)) for each in options_of(options)]
    )


def raise_all(problems: list[str], prefix: str = "") -> None:
    """Raise ValueError with the problems that are not empty, if there are any; the message begins with `prefix`."""
    if found := [problem for problem in problems if problem]:
        more = f"; and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
        raise ValueError(prefix + "; also ".join(found[:_LISTED]) + more)


def flag(name: str) -> str:
    """The spelling of an option on the command line: `--batch-size` for `batch_size`."""
    return f"--{name.replace('_', '-')}"


def taken_from(options: Mapping[str, object], kind: type[Group]) -> Group:
    """Make a dataclass from the options that are its fields. Other options are ignored; missing ones take defaults.

    Raises:
        ValueError: The dataclass refuses a value.
    """
    make: Callable[..., Group] = kind
    return make(**{each.name: options[each.name] for each in fields(kind) if each.name in options})
