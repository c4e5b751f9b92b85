"""The model card of an adapter: the README.md of its folder.

Its facts are in sections of their own, between comments that hold a checksum of what was written there. A later run
replaces a section only while it is as it was written: what was edited by hand, deleted or added stays.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from mlx_deltamem.adapter import CARD_FILE, Adapter
from mlx_deltamem.card_sections import PAPER, card_sections
from mlx_deltamem.files import new_file

_REQUIRED = ("library_name", "base_model", "base_model_relation", "pipeline_tag", "license", "tags")
_TAGS = ["mlx", "delta-mem", "memory", f"arxiv:{PAPER}"]
_SECTION = re.compile(
    r"<!-- mlx_deltamem:(?P<name>\w+) (?P<checksum>[0-9a-f]{16}) -->(?P<text>.*?)<!-- /mlx_deltamem:(?P=name) -->", re.S
)
# The name that an upload wrote into the usage section.
_PUBLISHED = re.compile(r"--adapter (?P<repo>[\w.-]+/[\w.-]+)\n")
_NO_METADATA = "---\n\n---\n"


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        text: All of it.
        missing: The metadata that a published adapter needs and that is not known.
        kept: The names of the sections that were edited by hand, and that are left as they are.
    """

    text: str
    missing: list[str]
    kept: list[str]

    @property
    def data(self) -> ModelCardData:
        """Its metadata."""
        return ModelCard(self.text).data


def make_card(
    folder: Path, adapter: Adapter, repo: str | None = None, base_model: str | None = None, licence: str | None = None
) -> Card:
    """The card of an adapter as it is in a folder: the one that is there, completed, or a new one.

    Args:
        folder: Where the adapter's files are.
        adapter: What they hold.
        repo: The Hub repo (USER/NAME) it is going to; None: the one the card names already, if any.
        base_model, licence: What is to stand in the metadata; None: what stands there, else what the adapter knows.

    Raises:
        ValueError: The metadata block of the card that is there is damaged, or the folder's results are.
    """
    path = folder / CARD_FILE
    new = not path.exists()
    text = _NO_METADATA if new else _read(path)
    card = _parse(path, text)
    before = card.data.to_dict()
    _complete(card.data, adapter, base_model, licence)
    data = card.data.to_dict()
    if repo is None and (published := _PUBLISHED.search(card.text)):
        repo = published["repo"]
    sections = card_sections(folder, adapter, repo, data.get("base_model"))
    body, kept = _with_sections(card.text, sections, new)
    # What need not change keeps its comments and its order.
    head = card.content if data != before else text
    return Card(head.removesuffix(card.text) + body, [name for name in _REQUIRED if not data.get(name)], kept)


def card_metadata(folder: Path) -> dict[str, str]:
    """What the card in a folder says of an adapter that the adapter itself need not know: its model and licence."""
    try:
        path = folder / CARD_FILE
        data = _parse(path, _read(path)).data
    except (OSError, ValueError):
        return {}
    values = {name: data.get(name) for name in ("base_model", "license")}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def refresh_card(folder: Path, adapter: Adapter) -> None:
    """Write the card of an adapter whose files were just written; one that is all by hand stays as it is.

    Raises:
        ValueError: The card that is there is damaged; it stays.
    """
    path = folder / CARD_FILE
    if not path.exists() or _SECTION.search(_read(path)):
        write_card(folder, make_card(folder, adapter))


def write_card(folder: Path, card: Card) -> None:
    """Write a card into its adapter's folder."""
    with new_file(folder / CARD_FILE) as file:
        file.write_text(card.text, encoding="utf-8", newline="")


def _read(path: Path) -> str:
    """A card that is there, with an empty metadata block if it has none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the model card {path} is no UTF-8 text ({error}); mend it or delete the file") from None
    return text if text.lstrip().startswith("---") else _NO_METADATA + text


def _parse(path: Path, text: str) -> ModelCard:
    try:
        card = ModelCard(text)
        for name in ("base_model", "license"):
            value = card.data.get(name)
            if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value or ""])):
                raise ValueError(f"{name} is {value!r}, expected a name")
        return card
    except (ValueError, TypeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"the metadata block of {path} is damaged ({problem}); mend it or delete the file") from None


def _complete(data: ModelCardData, adapter: Adapter, base_model: str | None, licence: str | None) -> None:
    """Fill in what the metadata lacks; what is there stays, unless it is given anew."""
    given = {"base_model": base_model, "license": licence}
    known = {
        "license": adapter.metadata.get("license"),
        "library_name": "mlx",
        "base_model": adapter.metadata.get("base_model"),
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "source_adapter": adapter.metadata.get("source_adapter"),
    }
    for name, value in known.items():
        data[name] = given.get(name) or data.get(name) or value
    data["tags"] = [*(data.get("tags") or []), *(tag for tag in _TAGS if tag not in (data.get("tags") or []))]


def _with_sections(body: str, sections: dict[str, str], new: bool) -> tuple[str, list[str]]:
    """The body with its sections as they are now, and the names of those that were edited."""
    if new:
        return body + "".join(f"\n{_section(name, text)}\n" for name, text in sections.items()), []
    kept = []

    def replaced(found: re.Match[str]) -> str:
        name = found["name"]
        if found["checksum"] != _checksum(found["text"]):
            kept.append(name)
        elif name in sections:
            return _section(name, sections[name])
        return found[0]

    return _SECTION.sub(replaced, body), kept


def _section(name: str, text: str) -> str:
    text = f"\n{text}\n" if text else "\n"
    return f"<!-- mlx_deltamem:{name} {_checksum(text)} -->{text}<!-- /mlx_deltamem:{name} -->"


def _checksum(text: str) -> str:
    # Editors may change how lines end.
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
