"""A tokenizer that caches its latest results, since a chat is rendered many times to find where its messages end."""

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.guarded import SOURCE
from mlx_deltamem.sessions.text.messages import Message

# This is enough for the chats of a few records, and for the history that several of them share.
_CACHED = 512
Result = TypeVar("Result")


class CachedTokenizer:
    """mlx-lm's tokenizer with a cache, for texts that come again soon.

    Args:
        tokenizer: The tokenizer. Its chat template must not change.
    """

    def __init__(self, tokenizer: TokenizerWrapper):
        self._tokenizer = tokenizer
        self._results: OrderedDict[Hashable, object] = OrderedDict()

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, messages: list[Message], **options: object) -> str:
        """Return the text of a chat."""
        key = json.dumps([messages, options], default=_text, sort_keys=True)
        return self._cached(key, lambda: self._tokenizer.apply_chat_template(messages, **options))

    def encode(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> list[int]:
        """Return the tokens of a text, as a new list."""
        options = {"add_special_tokens": add_special_tokens, "verbose": verbose}
        key = add_special_tokens, text
        return list(self._cached(key, lambda: self._tokenizer.encode(text, **options)))

    def _cached(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        if key not in self._results:
            self._results[key] = compute()
            if len(self._results) > _CACHED:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        return cast(Result, self._results[key])


def _text(option: object) -> str:
    """An option that is not JSON, as text. A chat template that was parsed is known by its source."""
    return str(getattr(option, SOURCE, option))
