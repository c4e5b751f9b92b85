"""Long texts, made shorter or cut into chunks."""

from collections.abc import Callable, Iterator

from mlx_deltamem.sessions.template import sentences

_MARKER = "\n\n[... context truncated ...]\n\n"


def clip(text: str, longest: int) -> str:
    """A text of no more than `longest` characters: its first third, a marker and its last two thirds (facts 4.2)."""
    if len(text) <= longest:
        return text
    head = (longest - len(_MARKER)) // 3
    tail = longest - len(_MARKER) - head
    return text[:head].rstrip() + _MARKER + text[-tail:].lstrip()


def fit(text: str, longest: int, count: Callable[[str], int]) -> str:
    """A text of no more than `longest` tokens, clipped as `clip` does it, as little as possible.

    Args:
        text: The text.
        longest: In tokens.
        count: Counts the tokens of a text.

    Raises:
        ValueError: Not even the marker and a few words fit.
    """
    if count(text) <= longest:
        return text
    low, high = 3 * len(_MARKER), len(text)
    if count(clip(text, low)) > longest:
        raise ValueError(f"a history has to fit into {longest} tokens; expected room for more: use a longer window")
    # More characters are not always more tokens, but what is found has been counted.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(clip(text, middle)) <= longest else (low, middle)
    return clip(text, low)


def sentence_chunks(text: str, longest: int, count: Callable[[str], int]) -> Iterator[str]:
    """Cut a text into chunks of whole sentences; joined, they are the text.

    Args:
        text: The text.
        longest: Tokens in a chunk. A sentence that has more is cut between words.
        count: Counts the tokens of a text.
    """
    chunk, size = [], 0
    for sentence in sentences(text):
        for piece in _pieces(sentence, longest, count):
            length = count(piece)
            if chunk and size + length > longest:
                yield "".join(chunk)
                chunk, size = [], 0
            chunk.append(piece)
            size += length
    if chunk:
        yield "".join(chunk)


def _pieces(sentence: str, longest: int, count: Callable[[str], int]) -> Iterator[str]:
    if len(sentence) < 2 or count(sentence) <= longest:
        yield sentence
        return
    # At the last space of the first half, or in its middle if there is none.
    cut = sentence.rfind(" ", 1, len(sentence) // 2) if " " in sentence[1 : len(sentence) // 2] else len(sentence) // 2
    yield from _pieces(sentence[:cut], longest, count)
    yield from _pieces(sentence[cut:], longest, count)
