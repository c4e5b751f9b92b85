"""A tokenizer that remembers what it did last: chats are told apart into messages by rendering them many times over."""

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.messages import Message

# Enough for the chats of a few records, and for the history that several of them share.
_REMEMBERED = 512


class RememberingTokenizer:
    """mlx-lm's tokenizer, for texts of which many come again soon.

    Args:
        tokenizer: The tokenizer; its chat template must not change.
    """

    def __init__(self, tokenizer: TokenizerWrapper):
        self._tokenizer = tokenizer
        self._found: OrderedDict[Hashable, object] = OrderedDict()

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, messages: list[Message], **options: object) -> str:
        """The text of a chat."""
        known = json.dumps([messages, options], default=str, sort_keys=True)
        return self._remembered(known, lambda: self._tokenizer.apply_chat_template(messages, **options))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text, a new list."""
        known = add_special_tokens, text
        return list(
            self._remembered(known, lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        )

    def _remembered(self, known: Hashable, find: Callable[[], object]) -> object:
        if known not in self._found:
            self._found[known] = find()
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        self._found.move_to_end(known)
        return self._found[known]
