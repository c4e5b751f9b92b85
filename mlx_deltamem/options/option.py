"""Options as fields of dataclasses: each has a default, a help text and a rule for the values that it may have."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Count = int | Literal["+", "*"]
T = TypeVar("T")
Group = TypeVar("Group", bound="DataclassInstance")

_KEY = "option"
_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Rule:
    """The help text of an option, and the values that it may have.

    Attributes:
        help: The help text.
        kind: The type of the value, or of each value of an option of several values.
        several: Whether the option has several values, as a tuple.
        optional: Whether the option may have no value: None, or an empty tuple.
        least: The smallest number allowed; None: no limit.
        above: Every number must be larger than this; None: no limit.
        choices: The values allowed; empty: all of the type.
        count: How many values an option of several values has: a number, "+" for one or more, "*" for any number.
    """

    help: str
    kind: type
    several: bool = False
    optional: bool = False
    least: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    count: Count = "+"

    def allows(self, value: object) -> bool:
        """Whether an option may have this value."""
        if value is None or value == ():
            return self.optional
        if not self.several:
            return self._allows_one(value)
        if not isinstance(value, tuple) or not all(map(self._allows_one, value)):
            return False
        return not isinstance(self.count, int) or len(value) == self.count

    @property
    def expected(self) -> str:
        """The allowed values, in words for an error message."""
        if not self.several:
            return self._expected_one
        return f"{self.count if isinstance(self.count, int) else 'a list of'} values, each {self._expected_one}"

    def _allows_one(self, value: object) -> bool:
        if self.kind is bool or self.kind is str:
            return isinstance(value, self.kind) and (not self.choices or value in self.choices)
        # In Python, True is an int as well.
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        if self.kind is float and not abs(value) <= sys.float_info.max:
            return False
        return (self.least is None or value >= self.least) and (self.above is None or value > self.above)

    @property
    def _expected_one(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        name = _NAMES[self.kind]
        if self.least is not None:
            return f"{name} from {self.least:g} on"
        return name if self.above is None else f"{name} above {self.above:g}"


def option(
    default: T,
    help: str,
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    kind: type = str,
    count: Count = "+",
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

    Returns:
        To a type checker, the default; at run time, the `dataclasses.Field`.
    """
    several, kind = isinstance(default, tuple), _kind_of(default, kind)
    rule = Rule(help, kind, several, default is None or default == (), least, above, choices, count)
    return field(default=default, metadata={_KEY: rule})


def _kind_of(default: object, kind: type) -> type:
    if isinstance(default, tuple):
        return type(default[0]) if default else kind
    return kind if default is None else type(default)


def rules(options: "DataclassInstance | type[DataclassInstance]") -> Iterator[tuple[str, object, Rule]]:
    """The name, the default and the rule of each option of a dataclass; fields that are no options are left out."""
    for each in fields(options):
        if _KEY in each.metadata:
            yield each.name, each.default, each.metadata[_KEY]


def check_options(options: "DataclassInstance", prefix: str = "") -> None:
    """Check the values of all options of a dataclass.

    Args:
        options: The dataclass.
        prefix: What its options begin with on the command line.

    Raises:
        ValueError: A value has the wrong type or is out of range.
    """
    for name, _, rule in rules(options):
        value = getattr(options, name)
        if not rule.allows(value):
            raise ValueError(f"{flag(prefix + name)} is {value!r}; expected {rule.expected}")


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
