"""The functions that a guarded chat template calls: they count its work, and predict sizes.

A template is a program that came with a model. `guarded_template` puts calls of these functions into it. They predict
the size of a result before it is made, because a single operation can fill the memory.
"""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from jinja2 import Environment, Undefined, pass_context
from jinja2.runtime import Context
from jinja2.utils import generate_lorem_ipsum

from mlx_deltamem.sessions.template.limits import TemplateLimitError, budget, size

_LARGEST_NUMBER = 100_000
_LARGEST_INDENT = 100
_LARGEST_BITS = 100_000
# In a field of a format, a width of five digits or one that is given as an argument.
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)")
# Filters whose result can be much longer than what they are given.
GROWING_FILTERS = frozenset(
    {
        *("batch", "center", "e", "escape", "forceescape", "format", "indent", "join", "list", "map", "pprint"),
        *("replace", "slice", "string", "sum", "tojson", "urlencode", "urlize", "wordwrap", "xmlattr"),
    }
)
# Those among them that make lists, whose items stay as they are.
_OF_ITEMS = frozenset({"batch", "list", "map", "slice", "sum"})


def items(iterable: Iterable[object], constant: int) -> Iterator[object]:
    """Go through what a loop goes through.

    Args:
        iterable: The items.
        constant: The number of characters that each round writes in any case.
    """
    left = budget()
    for item in iterable:
        left.step()
        if constant:
            left.write(constant)
        if isinstance(item, str):
            left.check(len(item))
        yield item


def entered() -> str:
    """Count a call of a macro; the result is empty."""
    budget().step()
    return ""


class _Written:
    """Counts a value that is written: `written[value]` is the value."""

    def __getitem__(self, value: object) -> object:
        left = budget()
        left.write(len(value) if isinstance(value, str) else size(value, left.longest))
        return value


class _Kept:
    """Checks a value that a variable gets: `kept[value]` is the value.

    A text that is added to itself again and again is soon too long.
    """

    def __getitem__(self, value: object) -> object:
        left = budget()
        left.check(len(value) if isinstance(value, str) else size(value, left.longest))
        return value


# These are for each text and each variable. In the sandbox, a call takes several times as long as `written[value]`.
written = _Written()
kept = _Kept()


def added(left: Any, right: Any) -> object:
    """`left + right`."""
    _check_all((left, right))
    return operator.add(left, right)


def joined(*parts: object) -> str:
    """`a ~ b ~ c`."""
    _check_all(parts)
    texts = [str(part) for part in parts]
    budget().check(sum(map(len, texts)))
    return "".join(texts)


def multiplied(left: Any, right: Any) -> object:
    """`left * right`."""
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str | bytes | list | tuple) and isinstance(count, int):
            budget().check(size(many, budget().longest) * max(count, 0))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return operator.mul(left, right)


def power(left: Any, right: Any) -> object:
    """`left ** right`."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    return operator.pow(left, right)


def remainder(left: Any, right: Any) -> object:
    """`left % right`, which also formats texts."""
    if isinstance(left, str | bytes):
        _check_format(str(left), right if isinstance(right, tuple) else (right,))
    return operator.mod(left, right)


@pass_context
def called(context: Context, function: Any, *args: Any, **kwargs: Any) -> object:
    """Call a function or a method in the sandbox."""
    # Lists that the template makes were checked when it made them.
    budget().step()
    if function is generate_lorem_ipsum:
        raise TemplateLimitError("it calls lipsum, which no chat needs")
    left = budget()
    for each in (*args, *kwargs.values()):
        if isinstance(each, str):
            left.check(len(each))
    method = getattr(function, "__wrapped__", function)
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(owner, str | bytes | int | float):
        args = _check_growth(name, owner, args, kwargs)
    # The sandbox checks the function.
    return cast(Any, context.environment).call(context, function, *args, **kwargs)


@pass_context
def filtered(context: Context, name: str, value: Any, *args: Any, **kwargs: Any) -> object:
    """Apply one of `GROWING_FILTERS`."""
    budget().step()
    if (
        name in ("join", "list", "sum")
        and isinstance(value, Iterable)
        and not isinstance(value, str | Mapping | Undefined)
    ):
        # It may be a generator, which can be gone through only once.
        value = list(items(value, 0))
    if name not in _OF_ITEMS:
        _check_all((value,))
    _check_all((*args, *kwargs.values()))
    _check_numbers((*args, *kwargs.values()), _LARGEST_INDENT if name == "tojson" else _LARGEST_NUMBER)
    if name in ("replace", "format"):
        _check_growth(name, str(value), args, kwargs)
    elif name == "join" and isinstance(value, Sized):
        budget().check(len(value) * _longest((*args, *kwargs.values())))
    elif name in ("indent", "wordwrap"):
        # At most one more text, or as many spaces, for each line.
        text = str(value)
        lines = text.count("\n") + 1 if name == "indent" else len(text)
        width = (
            0
            if name == "wordwrap"
            else max((each for each in (*args, *kwargs.values()) if type(each) is int), default=0)
        )
        budget().check(len(text) + lines * max(width, _longest((*args, *kwargs.values()))))
    environment: Environment = context.environment
    result = environment.call_filter(name, value, args, kwargs, context, context.eval_ctx)
    return _counted(result) if name == "map" else result


def _counted(results: Iterable[object]) -> Iterator[object]:
    """The results of `map`, which are all made at once if a list is made of them."""
    left = budget()
    for result in results:
        left.step()
        left.write(len(result) if isinstance(result, str) else 0)
        yield result


def _check_growth(name: str, owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Check the size of the result of a method of a text or number; returns the arguments."""
    given = (*args, *kwargs.values())
    _check_numbers(given, _LARGEST_NUMBER)
    left = budget()
    if name == "replace" and len(given) >= 2:
        left.check(len(owner) + owner.count(given[0]) * len(given[1]))
    elif name == "join" and len(given) == 1 and isinstance(given[0], Iterable):
        args = (list(items(given[0], 0)),)
        _check_all(args)
        left.check(len(owner) * len(args[0]))
    elif name in ("format", "format_map"):
        _check_format(str(owner), given)
    elif name == "expandtabs":
        left.check(len(owner) + owner.count("\t") * max((each for each in given if isinstance(each, int)), default=8))
    elif name == "translate" and len(given) == 1 and isinstance(given[0], Mapping):
        left.check(len(owner) * _longest(given[0].values()))
    return args


def _check_format(text: str, given: Iterable[object]) -> None:
    """Check the length of a text with fields, such as `%s` and `{}`, and of what is put into them."""
    if _WIDE_FIELD.search(text):
        raise TemplateLimitError("it formats a text with a width that is very large or not known")
    left = budget()
    fields = text.count("%") + text.count("{")
    left.check(len(text) + fields * max((size(each, left.longest) for each in given), default=0))


def _check_all(values: Iterable[object]) -> None:
    left = budget()
    for value in values:
        if isinstance(value, str):
            left.check(len(value))
        elif isinstance(value, list | tuple | dict):
            left.check(size(value, left.longest))


def _check_numbers(values: Iterable[object], largest: int) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > largest:
            raise TemplateLimitError(f"it asks for a width or a count of {value:,}, more than {largest:,}")


def _check_bits(bits: int) -> None:
    if bits > _LARGEST_BITS:
        raise TemplateLimitError("it computes a number of too many digits")


def _longest(values: Iterable[object]) -> int:
    """The length of the longest text among values, at least 1."""
    return max((len(each) for each in values if isinstance(each, str)), default=1)
