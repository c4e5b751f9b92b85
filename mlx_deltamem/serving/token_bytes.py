"""The bytes of single tokens, from the tokenizer's vocabulary: a token may be a part of a character."""

import re
from collections.abc import Iterator

from mlx_lm.tokenizer_utils import TokenizerWrapper

# Vocabularies of the kind of SentencePiece write a byte so, and a space as the second one.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def _byte_letters() -> dict[str, int]:
    """The byte of each letter of a byte-level vocabulary (GPT-2's map).

    A byte that Latin-1 prints stands for itself. The others, in order, are the characters from U+0100.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()


def token_bytes(tokenizer: TokenizerWrapper, token: int) -> bytes:
    """The bytes of a token. Those of the tokens of a text are the text in UTF-8.

    A token of no known kind of vocabulary gives the bytes of its decoded text.

    Args:
        tokenizer: mlx-lm's tokenizer.
        token: The id of the token. One that the tokenizer lacks, because the model has more, has no bytes.
    """
    text: str = tokenizer.decode([token])
    entry: object = tokenizer.convert_ids_to_tokens(token)
    if isinstance(entry, bytes):
        return entry
    for found in _readings(entry) if isinstance(entry, str) else ():
        # The tokenizer itself says which kind it is of. Some strip the space before a first word.
        if found.decode("utf-8", "replace").strip() == text.strip():
            return found
    return text.encode("utf-8", "replace")


def _readings(entry: str) -> Iterator[bytes]:
    """Read an entry of a vocabulary as each kind of vocabulary would: the bytes that it stands for there."""
    if byte := _BYTE.fullmatch(entry):
        yield bytes.fromhex(byte[1])
    if all(letter in _BYTES for letter in entry):
        yield bytes(_BYTES[letter] for letter in entry)
    yield entry.replace(_SPACE, " ").encode("utf-8", "replace")
