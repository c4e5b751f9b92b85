"""ETags of memories: a client that changes a memory can name the state that it has seen."""

import re

from mlx_deltamem.serving.exchange import RefusedError

_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e]*)"\s*(?:,|\Z)')


def etag(name: str, revision: str) -> str:
    """The ETag of a memory at a revision."""
    return f'"{name}@{revision}"'


def revisions(header: str | None, name: str) -> list[str] | None:
    """The revisions of a memory that an If-Match header allows; None: all.

    Raises:
        RefusedError: The header is not a list of ETags, or has none of this memory.
    """
    if header is None or header.strip() == "*":
        return None
    tags, place = [], 0
    # An empty header has no tag, and is refused as well.
    while place < len(header) or not header:
        found = _TAG.match(header, place)
        if found is None:
            raise RefusedError(400, "invalid_header", 'the If-Match header is not * or a list of ETags, such as "a@1"')
        place = found.end()
        # A weak ETag never matches here (RFC 9110, section 13.1.1).
        if not found[1] and found[2].startswith(f"{name}@"):
            tags.append(found[2].removeprefix(f"{name}@"))
    if not tags:
        raise changed(name)
    return tags


def changed(name: str) -> RefusedError:
    """The error for a memory that has another state than the client has seen."""
    return RefusedError(412, "memory_changed", f"the memory {name} was changed; fetch it again for its new ETag")
