"""The text of the tokens of a reply in an export: the reply, and what the tokens go on with where a stop text ended it.

A stop text and what came before it in the same token are not part of the reply, and were run all the same.
"""

from collections.abc import Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.replies.tool_calls import find_tool_calls
from mlx_deltamem.sessions.template.options import Tools
from mlx_deltamem.sessions.text.messages import ToolCall, call_arguments


def rest_of_reply(
    tokenizer: TokenizerWrapper, reply: str, ids: Sequence[int], calls: Sequence[ToolCall], tools: Tools | None
) -> str:
    """The text that the tokens of a reply go on with; empty if they are the reply, or something else.

    Args:
        tokenizer: mlx-lm's tokenizer.
        reply: The text of the reply.
        ids: Its tokens.
        calls: Its tool calls.
        tools: The tools that the model was offered.
    """
    texts = _texts(tokenizer, ids, calls, tools)
    if reply in texts:
        return ""
    return next((text.removeprefix(reply) for text in texts if text.startswith(reply)), "")


def are_tokens_of(
    tokenizer: TokenizerWrapper,
    reply: str,
    rest: str,
    ids: Sequence[int],
    calls: Sequence[ToolCall],
    tools: Tools | None,
) -> bool:
    """Whether tokens are a reply with its calls, and the text `rest` that they go on with. Others as above."""
    return reply + rest in _texts(tokenizer, ids, calls, tools)


def _texts(
    tokenizer: TokenizerWrapper, ids: Sequence[int], calls: Sequence[ToolCall], tools: Tools | None
) -> list[str]:
    """The texts that a reply of these tokens may have. There is none if the tokens have other calls."""
    if not calls:
        # A stop text is looked for in the text with special tokens. A reply without one has none of them.
        return [tokenizer.decode(list(ids), skip_special_tokens=skipped) for skipped in (True, False)]
    text, found = find_tool_calls(tokenizer, ids, tools)
    in_tokens, given = ([[call["function"]["name"], call_arguments(call)] for call in each] for each in (found, calls))
    return [text] if in_tokens == given else []
