"""The metadata block of a model card: YAML that users edit too, and that is therefore changed line by line.

Parsing and writing the whole block would lose comments, and would change values that YAML reads in its own way
(`language: no` is read as false).
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.files.yaml_text import parse_yaml

MOST_CARD_BYTES = 1 << 20

_CARD = re.compile(r"\A\s*---[ \t]*\r?\n(?P<block>(?:.*?\n)??)---[ \t]*(?:\r?\n|\Z)(?P<body>.*)\Z", re.S)
_NAMES = ("base_model", "license")
_MOST_SHOWN = 300


@dataclass(frozen=True)
class CardText:
    """The text of a card in two parts, with lines that end in `\\n`. A body with both kinds of line ends keeps them.

    Attributes:
        block: The YAML between the two lines of dashes.
        body: The Markdown after them.
        windows: Whether the lines of the file end in `\\r\\n`.
    """

    block: str = ""
    body: str = ""
    windows: bool = False

    def joined(self) -> str:
        """Return the text of the card, with the line ends of its file."""
        text = f"---\n{self.block}---\n{self.body}"
        return text.replace("\n", "\r\n") if self.windows else text


def read_card(path: Path) -> CardText:
    """Read a card.

    Raises:
        ValueError: The file is not UTF-8 text, is no regular file, or has more than `MOST_CARD_BYTES`.
        OSError: The file cannot be read.
    """
    try:
        text = read_file(path, MOST_CARD_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the model card {path} is not UTF-8 text ({error}); repair it or delete the file") from None
    windows = "\n" in text and not re.search(r"(?<!\r)\n", text)
    if windows:
        text = text.replace("\r\n", "\n")
    match = _CARD.match(text)
    if match is None:
        return CardText("", text, windows)
    # In a file whose lines end in both ways, those of the block may too.
    return CardText(match["block"].replace("\r\n", "\n"), match["body"], windows)


def parse_block(block: str, path: Path) -> dict[str, object]:
    """Return the metadata in a block.

    Args:
        block: The YAML of a card.
        path: The card's file, for errors.

    Raises:
        ValueError: The block is damaged, or the Hub would not accept it.
    """
    try:
        data = parse_yaml(block) or {}
        if not isinstance(data, dict):
            raise ValueError("it is not a mapping")
        if other := [name for name in data if not isinstance(name, str)]:
            raise ValueError(f"it has the name {other[0]!r}, expected a text")
        for name in _NAMES:
            value = data.get(name) or []
            if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name} is {value!r}, expected a name")
        tags = data.get("tags") or []
        if any(isinstance(tag, list | dict | set) for tag in (tags if isinstance(tags, list) else [tags])):
            raise ValueError("tags has a list or a mapping in it, expected names")
        # This checks the form of evaluation results.
        ModelCardData(**data).to_dict()  # type: ignore[no-untyped-call]  # of huggingface_hub
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        problem = shown(" ".join(str(error).split()) or type(error).__name__, _MOST_SHOWN)
        raise ValueError(f"the metadata block of {path} is damaged ({problem}); repair it or delete the file") from None
    return data


def edited_block(block: str, changes: Mapping[str, object], path: Path) -> str:
    """Return a block with new values for some keys; all other lines stay as they are, with comments and spelling.

    Args:
        block: The YAML of a card.
        changes: The new values.
        path: The card's file, for errors.

    Raises:
        ValueError: The block is written in a form that cannot be edited line by line, for instance `{a: 1}`.
    """
    expected = parse_block(block, path) | dict(changes)
    for name, value in changes.items():
        lines = yaml.safe_dump({name: value}, allow_unicode=True, width=1000)
        entry = re.search(rf"^([\"']?){re.escape(name)}\1[ \t]*:.*\n(?:(?:[ \t]+|-[ \t]).*\n)*", block, re.M)
        block = block + lines if entry is None else block[: entry.start()] + lines + block[entry.end() :]
    with suppress(ValueError):
        if parse_block(block, path) == expected:
            return block
    raise ValueError(f"the metadata block of {path} cannot be completed; write {', '.join(changes)} by hand")
