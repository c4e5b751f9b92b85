"""The frozen model's replies to messages, for training records."""

from mlx_lm import batch_generate

from mlx_deltamem.adapters.loading import load
from mlx_deltamem.sessions.template_text import rendered
from mlx_deltamem.show.progress import Counted

_AT_ONCE = 48


class Replies:
    """The frozen model's replies to messages that begin a chat.

    Args:
        model: The folder or Hub repo of the model.
        longest: The most tokens of a reply.

    Attributes:
        found: For each message, the reply and whether it was cut.
    """

    def __init__(self, model: str, longest: int):
        self._model, self._tokenizer = load(model)
        self._longest = longest
        self.found: dict[str, tuple[str, bool]] = {}

    def ask(self, messages: list[str], progress: Counted) -> None:
        """Generate the replies to messages, in batches of similar length."""
        prompts = {
            message: self._tokenizer.encode(
                rendered(self._tokenizer, [{"role": "user", "content": message}], True, {"enable_thinking": False}),
                add_special_tokens=False,
            )
            for message in dict.fromkeys(messages)
        }
        order = sorted(prompts, key=lambda message: len(prompts[message]))
        for begin in range(0, len(order), _AT_ONCE):
            batch = order[begin : begin + _AT_ONCE]
            response = batch_generate(
                self._model, self._tokenizer, [prompts[message] for message in batch], max_tokens=self._longest
            )
            for message, text in zip(batch, response.texts, strict=True):
                cut = len(self._tokenizer.encode(text, add_special_tokens=False)) >= self._longest
                self.found[message] = (text.strip(), cut)
            progress("the frozen model's replies", len(batch))
