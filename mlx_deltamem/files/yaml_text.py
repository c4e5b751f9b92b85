"""Parse YAML of files that anyone may have written: its size, its depth and what its aliases stand for are bounded.

A YAML text of a few hundred bytes can describe a value of billions of parts, because an alias repeats a whole part.
PyYAML also calls itself at each level of a text, and takes seconds for each megabyte.
"""

import re

import yaml

from mlx_deltamem.files.atomic import one_line

_MOST_CHARACTERS = 256 << 10
_DEEPEST = 40
# The parts of the value when each alias is replaced by what it stands for.
_MOST_PARTS = 50_000
# Python refuses to print whole numbers of more than 4300 digits. Numbers in YAML may also be hexadecimal, or hours,
# minutes and seconds.
_LONGEST_NUMBER = 1000
_NUMBER = re.compile("[-+]?[0-9][0-9a-fA-Fxb_:]*")


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text, with the standard types of YAML only.

    Raises:
        ValueError: The text is not valid YAML, or is larger or deeper than any that people write. The message is one
            line without the name of the file.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, expected {_MOST_CHARACTERS:,} at most")
    try:
        _check_extent(text)
        return yaml.load(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    # PyYAML's constructors do not document their errors: `!!int x` is a ValueError, `!!float ''` an IndexError.
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(one_line(error)) from None


def _check_extent(text: str) -> None:
    """Raise ValueError if the value is too deep or has too many parts. Nothing is built here."""
    parts_of: dict[str | None, int] = {}
    # The anchor of each open list or mapping, and the parts before it.
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        match event:
            case yaml.CollectionStartEvent():
                opened.append((event.anchor, total))
                total += 1
            case yaml.CollectionEndEvent():
                anchor, before = opened.pop()
                parts_of[anchor] = total - before
            case yaml.ScalarEvent():
                if len(event.value) > _LONGEST_NUMBER and _NUMBER.fullmatch(event.value):
                    raise ValueError("it has a number of too many digits")
                parts_of[event.anchor] = 1
                total += 1
            case yaml.AliasEvent():
                if any(anchor == event.anchor for anchor, _ in opened):
                    raise ValueError(f"the alias {event.anchor} stands for what it is a part of")
                total += parts_of.get(event.anchor, 1)
        if len(opened) > _DEEPEST:
            raise ValueError(f"it is nested too deeply, expected {_DEEPEST} levels at most")
        if total > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS:,} values, with those that its aliases stand for")
