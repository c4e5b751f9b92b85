"""The frozen model's replies to messages, for training records."""

from typing import cast

import mlx.core as mx
from mlx_lm import batch_generate
from mlx_lm.sample_utils import Sampler, greedy_sampler, make_sampler

from mlx_deltamem.adapters.loading import load
from mlx_deltamem.sessions.template.text import rendered
from mlx_deltamem.show.progress import Counted

_AT_ONCE = 48
# Greedy replies of a small model repeat themselves when they are long.
_TEMPERATURE = 0.85


class Replies:
    """The frozen model's replies to messages that begin a chat.

    Args:
        model: The folder or Hub repo of the model.
        longest: The most tokens of a reply, which is greedy.
        longest_long: The most tokens of a long reply, which is sampled.
        seed: The seed of the long replies.

    Attributes:
        found: For each message, the reply and whether it was cut.
        found_long: The same for long replies.
    """

    def __init__(self, model: str, longest: int, longest_long: int, seed: int):
        self._model, self._tokenizer = load(model)
        self._longest, self._longest_long, self._seed = longest, longest_long, seed
        self.found: dict[str, tuple[str, bool]] = {}
        self.found_long: dict[str, tuple[str, bool]] = {}

    def ask(self, messages: list[str], long: list[str], progress: Counted) -> None:
        """Generate the replies to messages, and long replies to the messages `long`."""
        self.found |= self._replies(messages, self._longest, greedy_sampler, progress)
        mx.random.seed(self._seed)
        self.found_long |= self._replies(long, self._longest_long, make_sampler(temp=_TEMPERATURE), progress)

    def _replies(
        self, messages: list[str], longest: int, sampler: Sampler, progress: Counted
    ) -> dict[str, tuple[str, bool]]:
        """Generate replies in batches of similar length."""
        prompts = {
            message: self._tokenizer.encode(
                rendered(self._tokenizer, [{"role": "user", "content": message}], True, {"enable_thinking": False}),
                add_special_tokens=False,
            )
            for message in dict.fromkeys(messages)
        }
        order = sorted(prompts, key=lambda message: len(prompts[message]))
        found = {}
        for begin in range(0, len(order), _AT_ONCE):
            batch = order[begin : begin + _AT_ONCE]
            given = [prompts[message] for message in batch]
            response = batch_generate(
                self._model, self._tokenizer, given, max_tokens=longest, sampler=sampler, return_token_ids=True
            )
            tokens = cast(list[list[int]], response.token_ids)
            for message, text, ids in zip(batch, response.texts, tokens, strict=True):
                cut = len(ids) >= longest
                # The last character of a reply that was cut may not be complete.
                found[message] = ((text.rstrip("\ufffd") if cut else text).strip(), cut)
            progress("the frozen model's replies", len(batch))
        return found
