"""One check of texts from options, data and the environment: whether a text can be encoded, stored and shown."""

import re

# Files and pasted texts may begin with a byte order mark, which editors do not show.
_BOM = "\ufeff"
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


def check_text(text: str, name: str) -> str:
    """Return a text without the byte order mark at its beginning.

    Tabs, line breaks and the other control characters stay, because mlx-lm reads them too.

    Args:
        text: The text.
        name: The name of the text. The error begins with it: "the system prompt", "data.jsonl row 3, `question`,".

    Raises:
        ValueError: The text has a character that cannot be in a text: see `text_problem`.
    """
    kind, detail = text_problem(text)
    if kind:
        raise ValueError(f"{name} has {kind} ({detail}); expected text: remove it or write the whole character")
    return text.removeprefix(_BOM)


def text_problem(text: str) -> tuple[str, str]:
    """Find the first character that cannot be in a text.

    It is a lone surrogate, which UTF-8 cannot encode, or a NUL character, which ends a text in other programs.

    Returns:
        Its kind and its place, in words; two empty texts if there is none.
    """
    found = _NO_TEXT.search(text)
    if found is None:
        return "", ""
    place = f"U+{ord(found[0]):04X} at character {found.start() + 1:,}"
    return ("half a character", f"a lone surrogate, {place}") if ord(found[0]) else ("a NUL character", place)
