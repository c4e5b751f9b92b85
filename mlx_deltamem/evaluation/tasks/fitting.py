"""How much text fits into a model's window, in its own tokens."""

from collections.abc import Sequence

from jinja2 import TemplateError

from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.sessions.template import Message


def text_tokens(backbone: Backbone, text: str) -> int:
    """The number of tokens of a text by itself."""
    return len(backbone.tokenizer.encode(text, add_special_tokens=False))


def prompt_tokens(backbone: Backbone, messages: Sequence[Message]) -> int:
    """The number of tokens of a chat that asks for a reply, thinking off.

    Raises:
        ValueError: The chat template refuses it.
    """
    try:
        # The tokens that turn thinking off count too.
        ids = backbone.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, enable_thinking=False)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template refuses the task's prompt ({roles}): {error}; give the tokenizer another chat template"
        ) from None
    return len(ids)


def longest_prompt(backbone: Backbone, messages: Sequence[Message], reply: int) -> int | None:
    """How many tokens a prompt may have; None where the model does not tell how long its window is.

    Args:
        backbone: Whose window and tokens.
        messages: The prompt without its history.
        reply: Tokens that are kept for the reply.

    Raises:
        ValueError: A history cannot fit.
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
