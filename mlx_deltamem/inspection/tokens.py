"""Tokens as short texts that can be seen."""

import unicodedata

# Signs for what has none of its own.
_SIGNS = {" ": "␣", "\n": "↵", "\r": "↵", "\t": "⇥"}


def visible(text: str, token: int, longest: int = 12) -> str:
    """A token as a label: spaces and line ends as signs, the rest as it is.

    Args:
        text: The token's text by itself.
        token: Its id, which stands for it (`#123`) where it has no text or is only a part of a character.
        longest: The most characters of a label; `…` stands for the rest.
    """
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return f"#{token}"
    label = "".join(_SIGNS.get(character) or _seen(character) for character in text)
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _seen(character: str) -> str:
    """A character, or its number where it leaves no mark."""
    return f"U+{ord(character):04X}" if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") else character
