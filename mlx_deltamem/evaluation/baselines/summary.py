"""The frozen model's own running summary of a history."""

from collections.abc import Sequence

import mlx.nn as nn
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import read_only
from mlx_deltamem.evaluation.decoding import Start, generate_replies
from mlx_deltamem.evaluation.question import user_message
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.token_ids import token_ids

# The most tokens of new text in one update of the summary; a longer turn is one update by itself.
_AT_ONCE = 512
_FIRST = "Here is the beginning of a conversation:\n\n{new}\n\n"
_LATER = "Here is a summary of a conversation so far:\n\n{summary}\n\nThe conversation goes on:\n\n{new}\n\n"
_TASK = (
    "Write a short summary of the whole conversation. Keep every name, number, date and place that the user told. "
    "Write only the summary."
)


def running_summary(
    model: nn.Module, tokenizer: TokenizerWrapper, texts: Sequence[str], most_tokens: int, step: int
) -> tuple[str, int]:
    """Let the frozen model summarise turns, some at a time. Each update reads the summary so far and the new turns.

    Args:
        model: An attached model. Its memory stays empty, so that the adapter has no effect.
        tokenizer: Its tokenizer, with a chat template.
        texts: The turns, oldest first.
        most_tokens: The longest summary, in tokens.
        step: The most tokens in one call of the model.

    Returns:
        The summary, and the number of tokens that were read for it.

    Raises:
        ValueError: The chat template refuses the prompt.
    """
    template = ChatTemplate(tokenizer, enable_thinking=False)
    summary, read = "", 0
    for new in _pieces(tokenizer, texts):
        text = (_LATER if summary else _FIRST).format(summary=summary, new=new) + _TASK
        ids = template.whole([user_message(text)], generation_prompt=True).ids
        start = Start(make_prompt_cache(model), ids, most_tokens, greedy_sampler)
        with read_only(model):
            (reply,), _ = generate_replies(model, tokenizer, [start], step=step)
        summary, read = reply.text.strip(), read + len(ids)
    return summary, read


def _pieces(tokenizer: TokenizerWrapper, texts: Sequence[str]) -> list[str]:
    """The turns, joined as long as they have at most `_AT_ONCE` tokens together."""
    pieces: list[list[str]] = []
    size = 0
    for text in texts:
        length = len(token_ids(tokenizer, text))
        if not pieces or size + length > _AT_ONCE:
            pieces.append([])
            size = 0
        pieces[-1].append(text)
        size += length
    return ["\n".join(piece) for piece in pieces]
