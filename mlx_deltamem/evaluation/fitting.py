"""How much text fits into a model's window, in its own tokens."""

from collections.abc import Sequence

from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.segments import Message


def text_tokens(backbone: Backbone, text: str) -> int:
    """The number of tokens of a text by itself."""
    return len(backbone.tokenizer.encode(text, add_special_tokens=False))


def tokens_left(backbone: Backbone, messages: Sequence[Message], reply: int) -> int | None:
    """How many tokens a prompt may still grow by; None where the model does not tell how long its window is.

    Args:
        backbone: Whose window and tokens.
        messages: The prompt as yet.
        reply: Tokens that are kept for the reply.

    Raises:
        ValueError: Not even these messages fit.
    """
    if backbone.window is None:
        return None
    used = len(backbone.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True))
    left = backbone.window - reply - used
    if left <= 0:
        raise ValueError(
            f"the model's window of {backbone.window} tokens has no room for a history: the question takes {used} and "
            f"the reply may take {reply}; use a model with a longer window"
        )
    return left
