"""The model card of an adapter: the README.md of its folder.

Its facts are in sections of their own, between comments that hold a checksum of what was written there. A later run
replaces a section only while it is as it was written: what was edited by hand, deleted or added stays.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.adapters.card.metadata import CardText, changed, metadata, read_card
from mlx_deltamem.adapters.card.sections import PAPER, card_sections, provenance
from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.core.adapter import CARD_FILE, Adapter
from mlx_deltamem.files.atomic import new_file

_FIXED = {"library_name": "mlx", "base_model_relation": "adapter"}
_REQUIRED = ("base_model", "license")
_TAGS = ["mlx", "delta-mem", "memory", f"arxiv:{PAPER}"]
# What an adapter knows of itself and its card says too.
_KNOWN = ("base_model", "license", "source_adapter", "source_license")
_SECTION = re.compile(
    r"<!-- mlx_deltamem:(?P<name>\w+) (?P<checksum>[0-9a-f]{16}) -->(?P<text>.*?)<!-- /mlx_deltamem:(?P=name) -->", re.S
)
# The name that an upload wrote into the usage section.
_PUBLISHED = re.compile(r"--adapter (?P<repo>[\w.-]+/[\w.-]+)\n")


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        text: All of it.
        data: Its metadata.
        missing: The metadata that a published adapter needs and that is not known.
        problems: What else must be mended before the adapter is published.
        kept: The names of the sections that were edited by hand, and that are left as they are.
    """

    text: str
    data: dict[str, object]
    missing: list[str]
    problems: list[str]
    kept: list[str]


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
        ValueError: The card that is there is damaged, or the folder's results are.
        OSError: It cannot be read.
    """
    path = folder / CARD_FILE
    new = not path.exists()
    old = CardText() if new else read_card(path)
    data = metadata(old.block, path)
    changes = _changes(data, adapter, base_model, licence)
    data |= changes
    sections = card_sections(folder, adapter, repo or _published(old.body), names(data.get("base_model")))
    body, kept = _with_sections(old.body, sections, new)
    return Card(
        text=CardText(changed(old.block, changes, path), body, old.windows).joined(),
        data=data,
        missing=[name for name in _REQUIRED if not data.get(name)],
        problems=_problems(data, body, sections, kept),
        kept=kept,
    )


def card_metadata(folder: Path) -> dict[str, str]:
    """What the card in a folder says of where the adapter came from, its model and its licence."""
    path = folder / CARD_FILE
    try:
        data = metadata(read_card(path).block, path)
    except (OSError, ValueError):
        return {}
    return {name: data[name] for name in _KNOWN if isinstance(data.get(name), str)}


def refresh_card(folder: Path, adapter: Adapter) -> None:
    """Write the card of an adapter whose files were just written; one that is all by hand stays as it is.

    Raises:
        ValueError: The card that is there is damaged; it stays.
    """
    path = folder / CARD_FILE
    if not path.exists() or _SECTION.search(read_card(path).body):
        write_card(folder, make_card(folder, adapter))


def provenance_card(adapter: Adapter) -> str | None:
    """A card that tells no more than where an adapter came from, for folders in other formats; None if not known."""
    known = {name: adapter.metadata[name] for name in _KNOWN if name in adapter.metadata}
    return CardText(changed("", known, Path(CARD_FILE)), f"\n{provenance(adapter)}\n").joined() if known else None


def write_card(folder: Path, card: Card) -> None:
    """Write a card into its adapter's folder."""
    with new_file(folder / CARD_FILE) as file:
        file.write_bytes(card.text.encode())


def names(value: object) -> list[str]:
    """One name or several, as metadata have them."""
    return value if isinstance(value, list) else [value] if value else []


def _changes(
    data: dict[str, object], adapter: Adapter, base_model: str | None, licence: str | None
) -> dict[str, object]:
    """What is new in the metadata: what is there stays, unless it is given anew."""
    known = adapter.metadata
    wanted = {
        "license": licence or data.get("license") or known.get("license") or known.get("source_license"),
        **{name: data.get(name) or value for name, value in _FIXED.items()},
        "pipeline_tag": data.get("pipeline_tag") or "text-generation",
        "base_model": base_model or data.get("base_model") or known.get("base_model"),
        "source_adapter": data.get("source_adapter") or known.get("source_adapter"),
        "source_license": data.get("source_license") or known.get("source_license"),
        "tags": list(dict.fromkeys([*names(data.get("tags")), *_TAGS])),
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
    """The repo that an earlier upload wrote into the card."""
    usages = [match["text"] for match in _SECTION.finditer(body) if match["name"] == "usage" and not _edited(match)]
    match = _PUBLISHED.search("".join(usages))
    return match and match["repo"]


def _with_sections(body: str, sections: dict[str, str], new: bool) -> tuple[str, list[str]]:
    """The body with its sections as they are now, and the names of those that were edited."""
    found = {match["name"]: match for match in _SECTION.finditer(body)}
    kept = sorted(name for name, match in found.items() if _edited(match))

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        return match[0] if name in kept or name not in sections else _section(name, sections[name])

    body = _SECTION.sub(replaced, body)
    added = list(sections) if new else [] if found else [name for name in sections if name != "title"]
    # Whose work it is made from is said in every card.
    if "provenance" not in {*found, *added} and _source(sections["provenance"]) not in body:
        added.append("provenance")
    return body + "".join(f"\n{_section(name, sections[name])}\n" for name in added), kept


def _source(provenance: str) -> str:
    """The link to the adapter that this one was made from, or nothing."""
    link = re.search(r"\[[^]]*\]\([^)]*\)", provenance)
    return link[0] if link else ""


def _section(name: str, text: str) -> str:
    text = f"\n{text}\n" if text else "\n"
    return f"<!-- mlx_deltamem:{name} {_checksum(text)} -->{text}<!-- /mlx_deltamem:{name} -->"


def _edited(match: re.Match[str]) -> bool:
    return match["checksum"] != _checksum(match["text"])


def _checksum(text: str) -> str:
    # Editors may take spaces from the ends of lines.
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
