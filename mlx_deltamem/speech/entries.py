"""Reads the named entries of a folder of YAML files, in which a name is given once."""

from collections.abc import Iterator, Mapping
from importlib.abc import Traversable
from importlib.resources import files
from typing import Any

import yaml


def entries(folder: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the entries of the YAML files in a folder of this package and in its folders.

    Yields:
        The name of the file without its ending, the name of the entry, and the entry. The files are sorted by name.

    Raises:
        ValueError: Two files have an entry of the same name.
    """
    found: dict[str, str] = {}
    for path in sorted(_yaml_files(files(__package__).joinpath(folder)), key=lambda each: each.name):
        for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if name in found:
                raise ValueError(f"{path.name} and {found[name]} both have {name}; rename one")
            found[name] = path.name
            yield path.name.removesuffix(".yaml"), name, entry


def check_names(where: str, entry: Mapping[str, object], needed: set[str], allowed: set[str]) -> None:
    """Check the names in an entry that consists of named parts. `where` names the entry in the error.

    Raises:
        ValueError: A name is missing or unknown.
    """
    if wrong := (set(entry) - allowed) | (needed - set(entry)):
        raise ValueError(f"{where} has missing or unknown entries: {', '.join(sorted(wrong))}")


def _yaml_files(folder: Traversable) -> Iterator[Traversable]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _yaml_files(each)
        elif each.name.endswith(".yaml"):
            yield each
