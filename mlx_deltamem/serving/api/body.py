"""The body of a request: a JSON object with bounds, and readers for its fields. A field that is null is absent."""

import json
import math
from collections.abc import Mapping
from typing import TypeVar

from starlette.requests import Request

from mlx_deltamem.files.fields import as_whole_number
from mlx_deltamem.files.jsonl import Json, kind_of, parsed_json
from mlx_deltamem.options.rule import Rule
from mlx_deltamem.serving.api.errors import BadFieldError
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.sessions.text.messages import is_utf8

_MOST_VALUES = 1_000_000
_LONGEST_TEXT = 64 << 20

Default = TypeVar("Default")


async def read_object(request: Request, optional: bool = False) -> "Fields":
    """Read the body of a request, which must be a JSON object.

    Args:
        request: The request.
        optional: Whether an empty body stands for an empty object.

    Raises:
        RefusedError: It is not one; or it repeats a field, has half a character or a number that is not finite.
    """
    raw = await request.body()
    return Fields({} if optional and not raw.strip() else json_object(raw))


def json_object(raw: bytes) -> dict[str, Json]:
    """Return the object of a JSON text. Errors are those of `read_object`."""
    # This checks the size and the depth before it parses, and refuses repeated names.
    _, problem = parsed_json(raw, _MOST_VALUES)
    if problem:
        raise _invalid(problem)
    try:
        value: Json = json.loads(raw.decode("utf-8-sig"), parse_constant=_refused, parse_float=_finite)
    except ValueError as error:
        raise _invalid(f"JSON with {error}") from None
    if not isinstance(value, dict):
        raise _invalid(kind_of(value))
    # Only an escape can give half a character: the text is UTF-8.
    if b"\\u" in raw and not _all_utf8(value):
        raise _invalid("JSON with half a character (a lone surrogate)")
    return value


def _invalid(problem: str) -> RefusedError:
    return RefusedError(400, "invalid_json", f"the body is {problem}; expected a JSON object")


def _refused(name: str) -> Json:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _all_utf8(value: Json) -> bool:
    waiting: list[Json] = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and not is_utf8(each):
            return False
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
    return True


class Fields:
    """The fields of a JSON object. All readers raise BadFieldError, which names the field.

    Args:
        values: The object.
        place: The name of the object within the body; "": the body itself.

    Attributes:
        values: The object as it was given. What is passed on as it is, such as the input of a tool, keeps its nulls.
    """

    def __init__(self, values: Mapping[str, Json], place: str = ""):
        self.values = values
        self._present = {name: value for name, value in values.items() if value is not None}
        self._place = place

    def name(self, name: str) -> str:
        """The name of a field for messages: with the names of the objects around it."""
        return f"{self._place}.{name}" if self._place else name

    def bad(self, name: str, expected: str, code: str = "invalid_value") -> BadFieldError:
        """The error for a field with a wrong value."""
        value = self._present.get(name)
        found = f"is {kind_of(value)}" if name in self._present else "is missing"
        return BadFieldError(self.name(name), f"{self.name(name)} {found}; expected {expected}", code)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return name in self._present

    def json(self, name: str, default: Json = None) -> Json:
        """The value of a field, whatever it is."""
        return self._present.get(name, default)

    def number(self, name: str, rule: Rule, default: Default) -> float | Default:
        """A number that a rule allows."""
        if name not in self._present:
            return default
        value = self._present[name]
        self._check(name, rule, value)
        # A whole number of JSON may be larger than any float; the rule has a limit.
        return float(value) if isinstance(value, int | float) else default

    def whole(self, name: str, rule: Rule, default: Default) -> int | Default:
        """A whole number that a rule allows; 3.0 is one."""
        if name not in self._present:
            return default
        value = as_whole_number(self._present[name])
        self._check(name, rule, self._present[name] if value is None else value)
        return default if value is None else value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._present.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def text(self, name: str, default: Default, longest: int = _LONGEST_TEXT) -> str | Default:
        """A text."""
        if name not in self._present:
            return default
        value = self._present[name]
        if not isinstance(value, str):
            raise self.bad(name, "a text")
        if len(value) > longest:
            raise BadFieldError(self.name(name), f"{self.name(name)} has more than {longest:,} characters; shorten it")
        return value

    def items(self, name: str) -> list[Json] | None:
        """A list; None if it is absent."""
        value = self._present.get(name)
        if value is not None and not isinstance(value, list):
            raise self.bad(name, "a list")
        return value

    def nested(self, name: str) -> "Fields | None":
        """An object; None if it is absent."""
        value = self._present.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(name, "an object")
        return Fields(value, self.name(name))

    def _check(self, name: str, rule: Rule, value: object) -> None:
        if problem := rule.problem(self.name(name), value):
            raise BadFieldError(self.name(name), problem)
