"""The pictures that a model card shows."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_ENDINGS = {".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp"}
# Markdown's `![text](path)` and `![text](<path with spaces>)`, and HTML's `<img src="path">`.
_SHOWN = re.compile(r"!\[[^\]]*\]\(\s*(?:<([^>]+)>|([^\s)]+))|<img\b[^>]*?\bsrc=[\"']([^\"']+)[\"']", re.I)


def shown_pictures(folder: Path, card: str) -> list[str]:
    """The names of the folder's pictures that a card shows, each relative to the folder.

    Pictures outside of the folder, in hidden folders or under an absolute path are none of the adapter's.
    """
    names = dict.fromkeys(_name(unquote(next(filter(None, match.groups())))) for match in _SHOWN.finditer(card))
    home = folder.resolve()
    return [
        name for name in names if name and (folder / name).is_file() and (folder / name).resolve().is_relative_to(home)
    ]


def _name(target: str) -> str:
    """The relative path of a picture, or nothing."""
    path = PurePosixPath(target)
    own = not path.is_absolute() and ":" not in target and not any(part.startswith(".") for part in path.parts)
    return str(path) if own and path.suffix.lower() in _ENDINGS else ""
