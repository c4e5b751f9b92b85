"""The metadata block of a model card: YAML that others write too, and that is changed line by line.

Writing it anew would lose comments and turn values that YAML reads otherwise (`language: no`) into something else.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

_CARD = re.compile(r"\A\s*---[ \t]*\n(?P<block>(?:.*?\n)??)---[ \t]*(?:\n|\Z)(?P<body>.*)\Z", re.S)
_NAMES = ("base_model", "license")


@dataclass(frozen=True)
class CardText:
    """A card in its two parts, with lines that end in `\\n`.

    Attributes:
        block: The YAML between the dashes.
        body: The Markdown after them.
        windows: Whether the lines of its file end in `\\r\\n`.
    """

    block: str = ""
    body: str = ""
    windows: bool = False

    def joined(self) -> str:
        """The text of the card."""
        text = f"---\n{self.block}---\n{self.body}"
        return text.replace("\n", "\r\n") if self.windows else text


def read_card(path: Path) -> CardText:
    """The card in a file.

    Raises:
        ValueError: It is no text.
        OSError: It cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the model card {path} is no UTF-8 text ({error}); mend it or delete the file") from None
    windows = "\n" in text and not re.search(r"(?<!\r)\n", text)
    if windows:
        text = text.replace("\r\n", "\n")
    match = _CARD.match(text)
    return CardText(match["block"], match["body"], windows) if match else CardText("", text, windows)


def metadata(block: str, path: Path) -> dict[str, object]:
    """What a block says; `path` is its card's, for messages.

    Raises:
        ValueError: It is damaged, or is not what the Hub understands.
    """
    try:
        data = yaml.safe_load(block) or {}
        if not isinstance(data, dict):
            raise ValueError("it is no mapping")
        for name in _NAMES:
            value = data.get(name) or []
            if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name} is {value!r}, expected a name")
        # It checks the evaluation results, which have a form of their own.
        ModelCardData(**data).to_dict()
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the metadata block of {path} is damaged ({problem}); mend it or delete the file") from None
    return data


def changed(block: str, changes: Mapping[str, object], path: Path) -> str:
    """A block with other values for some keys, all else as it was, down to comments and spelling.

    Raises:
        ValueError: The block is written in a way that does not allow it.
    """
    expected = metadata(block, path) | dict(changes)
    for name, value in changes.items():
        lines = yaml.safe_dump({name: value}, allow_unicode=True, width=1000)
        entry = re.compile(rf"^{re.escape(name)}[ \t]*:.*\n(?:(?:[ \t]+|-[ \t]).*\n)*", re.M)
        block = entry.sub(lambda _, lines=lines: lines, block, count=1) if entry.search(block) else block + lines
    with suppress(ValueError):
        if metadata(block, path) == expected:
            return block
    raise ValueError(f"the metadata block of {path} cannot be completed; write {', '.join(changes)} by hand")
