"""Make the model card of an adapter.

The generated facts are in sections, each between two comments with a checksum of the section's text. A later run
replaces a section only if its text still has that checksum: sections that were edited or deleted by hand stay as they
are, and so does all other text.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.adapters.card.metadata import CardText, edited_block, parse_block, read_card
from mlx_deltamem.adapters.card.sections import PAPER, card_sections, provenance
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.core.adapter import CARD_FILE, Adapter

_FIXED = {"library_name": "mlx", "base_model_relation": "adapter"}
_REQUIRED = ("base_model", "license")
_TAGS = ["mlx", "delta-mem", "memory", f"arxiv:{PAPER}"]
# Metadata that both the weights file of an adapter and its card may have.
KNOWN = ("base_model", "license", "source_adapter", "source_license")
_SECTION = re.compile(
    # The text has no other beginning of a section. Otherwise a card of many beginnings would take quadratic time.
    r"<!-- mlx_deltamem:(?P<name>\w+) (?P<checksum>[0-9a-f]{16}) -->(?P<text>(?:(?!<!-- mlx_deltamem:).)*?)"
    r"<!-- /mlx_deltamem:(?P=name) -->",
    re.S,
)
# The repo that an upload wrote into the usage section.
_PUBLISHED = re.compile(r"--adapter (?P<repo>[\w.-]+/[\w.-]+)\r?\n")


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        text: The whole text.
        data: The metadata.
        missing: The names of the metadata that a published adapter needs and that are not known.
        problems: The other problems that must be solved before the adapter is published.
        kept: The names of the sections that were edited by hand and are left as they are.
    """

    text: str
    data: dict[str, object]
    missing: list[str]
    problems: list[str]
    kept: list[str]


def make_card(
    folder: Path, adapter: Adapter, repo: str | None = None, base_model: str | None = None, licence: str | None = None
) -> Card:
    """Make the card for the adapter in a folder: the card that is there, completed, or a new one.

    Args:
        folder: The adapter's folder.
        adapter: The adapter in the folder.
        repo: The Hub repo (USER/NAME) that it will be uploaded to; None: the repo that the card names, if any.
        base_model, licence: New values for the metadata; None: the value on the card, else that in the weights file.

    Raises:
        ValueError: The card that is there or the folder's results.json is damaged.
        OSError: A file cannot be read.
    """
    path = folder / CARD_FILE
    new = not path.exists()
    old = CardText() if new else read_card(path)
    data = parse_block(old.block, path)
    changes = _changes(data, adapter, base_model, licence)
    data |= changes
    sections = card_sections(folder, adapter, repo or _published(old.body), names(data.get("base_model")))
    body, kept = _with_sections(old.body, sections, new)
    return Card(
        text=CardText(edited_block(old.block, changes, path), body, old.windows).joined(),
        data=data,
        missing=[name for name in _REQUIRED if not data.get(name)],
        problems=_problems(data, body, sections, kept),
        kept=kept,
    )


def has_sections(body: str) -> bool:
    """Return whether a card has generated sections; otherwise it is written entirely by hand."""
    return _SECTION.search(body) is not None


def provenance_card(adapter: Adapter) -> str | None:
    """Return a card with only the origin of an adapter, for folders in other formats; None if it is not known."""
    known = {name: adapter.metadata[name] for name in KNOWN if name in adapter.metadata}
    if not known:
        return None
    return CardText(edited_block("", known, Path(CARD_FILE)), f"\n{provenance(adapter)}\n").joined()


def names(value: object) -> list[str]:
    """Return the names in a metadata value, which is one name, a list of names or nothing."""
    return [item for item in _items(value) if isinstance(item, str)]


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value] if value else []


def _changes(
    data: dict[str, object], adapter: Adapter, base_model: str | None, licence: str | None
) -> dict[str, object]:
    """Return the metadata to add or replace: values that are there stay, unless a new one is given."""
    known = adapter.metadata
    wanted = {
        "license": licence or data.get("license") or known.get("license") or known.get("source_license"),
        **{name: data.get(name) or value for name, value in _FIXED.items()},
        "pipeline_tag": data.get("pipeline_tag") or "text-generation",
        "base_model": base_model or data.get("base_model") or known.get("base_model"),
        "source_adapter": data.get("source_adapter") or known.get("source_adapter"),
        "source_license": data.get("source_license") or known.get("source_license"),
        "tags": list(dict.fromkeys([*_items(data.get("tags")), *_TAGS])),
    }
    return {name: value for name, value in wanted.items() if value and value != data.get(name)}


def _problems(data: dict[str, object], body: str, sections: dict[str, str], kept: list[str]) -> list[str]:
    problems = [f"{name} is {data[name]}, expected {value}" for name, value in _FIXED.items() if data[name] != value]
    problems += [
        f"base_model is {name}, expected a Hub repo (USER/NAME)"
        for name in names(data.get("base_model"))
        if not is_repo_name(name)
    ]
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        problems.append("license is other, which needs license_name and license_link")
    checksums = re.findall(r"`[0-9a-f]{64}`", sections["files"])
    if "files" in kept and not all(checksum in body for checksum in checksums):
        problems.append("its section on files was edited and has other checksums; delete the section")
    return problems


def _published(body: str) -> str | None:
    """Return the repo that an earlier upload wrote into the card."""
    usages = [match["text"] for match in _SECTION.finditer(body) if match["name"] == "usage" and not _edited(match)]
    match = _PUBLISHED.search("".join(usages))
    return match and match["repo"]


def _with_sections(body: str, sections: dict[str, str], new: bool) -> tuple[str, list[str]]:
    """Return the body with its sections brought up to date, and the names of the sections edited by hand."""
    found = {match["name"]: match for match in _SECTION.finditer(body)}
    kept = sorted(name for name, match in found.items() if _edited(match))

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        return match[0] if name in kept or name not in sections else _section(name, sections[name])

    body = _SECTION.sub(replaced, body)
    added = list(sections) if new else [] if found else [name for name in sections if name != "title"]
    # Every card must name the adapter that this one was made from.
    if "provenance" not in {*found, *added} and _source(sections["provenance"]) not in body:
        added.append("provenance")
    return body + "".join(f"\n{_section(name, sections[name])}\n" for name in added), kept


def _source(provenance: str) -> str:
    """Return the link to the adapter that this one was made from, or an empty string."""
    link = re.search(r"\[[^][]*\]\([^()]*\)", provenance)
    return link[0] if link else ""


def _section(name: str, text: str) -> str:
    text = f"\n{text}\n" if text else "\n"
    return f"<!-- mlx_deltamem:{name} {_checksum(text)} -->{text}<!-- /mlx_deltamem:{name} -->"


def _edited(match: re.Match[str]) -> bool:
    return match["checksum"] != _checksum(match["text"])


def _checksum(text: str) -> str:
    # Editors may strip the ends of lines.
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
