"""The special tokens in a reply, which clients see and send back, and which a turn leaves out."""

import re

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.text.messages import Message


def special_tokens(tokenizer: TokenizerWrapper) -> re.Pattern[str] | None:
    """A pattern for the texts of all tokens that a turn's reply leaves out; None if there are none."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {token.content for token in added if token.special} | {*getattr(tokenizer, "all_special_tokens", [])}
    # The longest one first: one may begin with another.
    found = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def without_special_tokens(message: Message, special: re.Pattern[str] | None) -> Message:
    """A message as a turn keeps it.

    Args:
        message: A message as a client sends it.
        special: The pattern from `special_tokens`.
    """
    if message["role"] != "assistant" or special is None:
        return message
    return {**message, "content": special.sub("", message["content"])}
