"""Rules for the values of options: one for each kind of number, choice and text.

The command line, files of options and the library check a value by the same rule, and so give the same error.
"""

import argparse
import re
from dataclasses import dataclass
from typing import Literal

Count = int | Literal["+", "*"]

# The limits of whole numbers and of numbers where a rule has no limit. MLX counts elements with 32 bits, and computes
# with float32, where a larger number is infinite.
LARGEST_COUNT = 2**31 - 1
LARGEST_NUMBER = 3.4028234663852886e38

_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Rule:
    """The values that an option may have. A rule is also the `type` of an argument of argparse.

    Attributes:
        kind: The type of the value, or of each value of an option of several values.
        several: Whether the option has several values, as a tuple.
        optional: Whether the option may have no value: None, or an empty tuple.
        least: The smallest number allowed; None: the smallest that MLX can use.
        most: The largest number allowed; None: the largest that MLX can use.
        above: Every number must be larger than this; None: no such limit.
        other: A number that is allowed besides the range, with its meaning: `(-1, "no limit")`.
        choices: The values allowed; empty: all of the type.
        count: How many values an option of several values has: a number, "+" for one or more, "*" for any number.
        distinct: Whether several values must differ from each other.
        pattern: A regular expression that a text must match as a whole; "": no such condition.
        words: The allowed values in words, if the other attributes do not give them.
    """

    kind: type
    several: bool = False
    optional: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    other: tuple[int, str] | None = None
    choices: tuple[int, ...] | tuple[str, ...] = ()
    count: Count = "+"
    distinct: bool = False
    pattern: str = ""
    words: str = ""

    def allows(self, value: object) -> bool:
        """Whether an option may have this value."""
        if value is None:
            return self.optional
        if not self.several:
            return self._allows_one(value)
        if not isinstance(value, tuple) or not all(map(self._allows_one, value)):
            return False
        if self.distinct and len(set(value)) < len(value):
            return False
        if not value:
            return self.optional or self.count == "*"
        return not isinstance(self.count, int) or len(value) == self.count

    def problem(self, name: str, value: object) -> str:
        """The error message for the value of the option `name`; "" if the value is allowed."""
        return "" if self.allows(value) else f"{name} {self._refusal(value)}"

    def check(self, name: str, value: object) -> None:
        """Raise ValueError if the option `name` may not have a value."""
        if problem := self.problem(name, value):
            raise ValueError(problem)

    def __call__(self, text: str) -> object:
        """Read one value from the command line.

        Raises:
            argparse.ArgumentTypeError: The text is not an allowed value. The message lacks the name of the option.
        """
        value: object = text
        if self.kind is int or self.kind is float:
            try:
                value = self.kind(text)
            except ValueError:
                raise argparse.ArgumentTypeError(self._refusal(text)) from None
        if not self._allows_one(value):
            raise argparse.ArgumentTypeError(self._refusal(value))
        return value

    @property
    def expected(self) -> str:
        """The allowed values, in words for an error message."""
        if not self.several:
            return self.expected_one
        counted = {"+": "one or more", "*": "any number of"}.get(str(self.count), str(self.count))
        return f"{counted} {'different ' if self.distinct else ''}values, each {self.expected_one}"

    @property
    def expected_one(self) -> str:
        """The allowed values of an option of one value, or of each of several values, in words."""
        if self.words:
            return self.words
        if self.choices:
            return " or ".join(map(str, self.choices))
        if self.kind not in (int, float):
            return _NAMES[self.kind]
        other = f", or {self.other[0]} for {self.other[1]}" if self.other else ""
        return f"{_NAMES[self.kind]} {self._range()}{other}"

    def _allows_one(self, value: object) -> bool:
        if self.choices:
            return type(value) in (int, str) and value in self.choices
        if self.kind is bool or self.kind is str:
            return isinstance(value, self.kind) and self._matches(value)
        # In Python, True is an int as well.
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        if self.other is not None and value == self.other[0]:
            return True
        low, high = self._limits()
        return low <= value <= high and (self.above is None or value > self.above)

    def _matches(self, value: object) -> bool:
        return not self.pattern or (isinstance(value, str) and re.fullmatch(self.pattern, value) is not None)

    def _limits(self) -> tuple[float, float]:
        largest = LARGEST_COUNT if self.kind is int else LARGEST_NUMBER
        return -largest if self.least is None else self.least, largest if self.most is None else self.most

    def _range(self) -> str:
        low, high = self._limits()
        if self.above is not None:
            return f"above {_number(self.above)}, at most {_number(high)}"
        return f"from {_number(low)} to {_number(high)}"

    def _refusal(self, value: object) -> str:
        return f"is {shown(value)}; expected {self.expected}"


def shown(value: object) -> str:
    """A value as an error message shows it: on one line, and not too long."""
    try:
        text = repr(value)
    except ValueError:
        # Python does not write such numbers.
        return "a number of more than 4,300 digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ... ({len(text):,} characters)"


def _number(value: float) -> str:
    """A limit as a text: 1,024 or 2**31 - 1 or 0.5."""
    if isinstance(value, float):
        return f"{value:.2g}"
    if abs(value) < 1_000_000:
        return f"{value:,}"
    bits = (abs(value) + 1).bit_length() - 1
    text = f"2**{bits} - 1" if abs(value) == 2**bits - 1 else f"{abs(value):,}"
    return text if value > 0 else f"-({text})" if " " in text else f"-{text}"


# MLX takes seeds of 64 bits.
SEED = Rule(int, least=0, most=2**64 - 1)
# A number of things, which may be 0.
COUNT = Rule(int, least=0)
# A number of things, at least one.
POSITIVE = Rule(int, least=1)
# A part of a whole.
SHARE = Rule(float, least=0, most=1)
# Tokens to run at once, and the longest reply. Programs that want no limit give the largest number of 64 bits.
STEP = Rule(int, least=1, most=2**63 - 1)
REPLY_LENGTH = Rule(int, least=1, most=2**63 - 1, other=(-1, "no limit"))
# Logits are divided by the temperature, and are infinite for smaller ones.
TEMPERATURE = Rule(float, least=1e-6, other=(0, "the likeliest token"))
# The name of a model, an adapter or data.
PLACE = Rule(str, pattern=r"(?s).*\S.*", words="the name of a folder or of a Hub repo")
# The numbers of bits, and the sizes of groups, that MLX can quantise to. It ends the process for 0 bits.
BITS = Rule(int, choices=(2, 3, 4, 5, 6, 8))
GROUP_SIZE = Rule(int, choices=(32, 64, 128))
