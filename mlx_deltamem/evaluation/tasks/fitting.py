"""Fit texts into a model's window: count tokens, shorten long texts, and cut them into chunks."""

from collections.abc import Callable, Iterator, Sequence

from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.sessions.text.messages import Message

_MARKER = "\n\n[... context truncated ...]\n\n"


def text_tokens(backbone: Backbone, text: str) -> int:
    """The number of tokens of a text, without special tokens."""
    # Not above: the options of a command are parsed without mlx-lm.
    from mlx_deltamem.sessions.text.token_ids import token_ids

    return len(token_ids(backbone.tokenizer, text))


def prompt_tokens(backbone: Backbone, messages: Sequence[Message]) -> int:
    """The number of tokens of a prompt, with the generation prompt and with thinking switched off.

    Raises:
        ValueError: The chat template refuses the messages.
    """
    from mlx_deltamem.sessions.template.text import rendered

    # The tokens that switch thinking off count too.
    return text_tokens(backbone, rendered(backbone.tokenizer, messages, True, {"enable_thinking": False}))


def longest_prompt(backbone: Backbone, messages: Sequence[Message], reply: int) -> int | None:
    """The most tokens that a prompt may have; None if the model does not state its window.

    Args:
        backbone: The window and the tokenizer.
        messages: The prompt without its history.
        reply: The tokens to keep free for the reply.

    Raises:
        ValueError: There is no room for a history.
    """
    if backbone.window is None:
        return None
    longest, used = backbone.window - reply, prompt_tokens(backbone, messages)
    if used >= longest:
        raise ValueError(
            f"the model's window of {backbone.window} tokens has no room for a history: the question takes {used} and "
            f"the reply may take {reply}; use a model with a longer window"
        )
    return longest


def clip(text: str, longest: int) -> str:
    """Shorten a text to `longest` characters: its first third, a marker and its last two thirds (facts 4.2)."""
    if len(text) <= longest:
        return text
    head = (longest - len(_MARKER)) // 3
    tail = longest - len(_MARKER) - head
    return text[:head].rstrip() + _MARKER + text[-tail:].lstrip()


def fit(text: str, longest: int, count: Callable[[str], int]) -> str:
    """Shorten a text to `longest` tokens, in the way of `clip` and as little as possible.

    Args:
        text: The text.
        longest: The most tokens.
        count: Counts the tokens of a text.

    Raises:
        ValueError: Even the marker with a few words is too long.
    """
    if count(text) <= longest:
        return text
    low, high = 3 * len(_MARKER), len(text)
    if count(clip(text, low)) > longest:
        raise ValueError(
            f"a history must fit into {longest} tokens, which is too few; use a model with a longer window"
        )
    # More characters may have fewer tokens, so this need not find the longest text, but what it finds fits.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(clip(text, middle)) <= longest else (low, middle)
    return clip(text, low)


def sentence_chunks(text: str, longest: int, count: Callable[[str], int]) -> Iterator[str]:
    """Cut a text into chunks of whole sentences. The chunks, joined, are the text.

    Args:
        text: The text.
        longest: The most tokens of a chunk. A longer sentence is cut between words.
        count: Counts the tokens of a text.
    """
    from mlx_deltamem.sessions.template.chat_template import sentences

    chunk: list[str] = []
    size = 0
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
    """Halve a sentence until its pieces have at most `longest` tokens."""
    if len(sentence) < 2 or count(sentence) <= longest:
        yield sentence
        return
    # At the last space of the first half, or in the middle if there is none.
    cut = sentence.rfind(" ", 1, len(sentence) // 2) if " " in sentence[1 : len(sentence) // 2] else len(sentence) // 2
    yield from _pieces(sentence[:cut], longest, count)
    yield from _pieces(sentence[cut:], longest, count)
