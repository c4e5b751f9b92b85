"""The numbers of tokens of a request, in OpenAI's form."""

from collections.abc import Mapping, Sequence

from mlx_deltamem.serving.api.selection import memory_usage
from mlx_deltamem.serving.exchange import Done


def known_tokens(done: Done) -> int:
    """The number of tokens before the reply that did not run for this request."""
    return max(done.prompt_tokens - done.read_tokens, 0)


def usage(ends: Sequence[Done]) -> Mapping[str, object]:
    """The field `usage`. With several replies to one prompt, their tokens are added, and the prompt counts once."""
    first, replies = ends[0], sum(done.reply_tokens for done in ends)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": replies,
        "total_tokens": first.prompt_tokens + replies,
        "prompt_tokens_details": {"cached_tokens": known_tokens(first)},
        "memory": memory_usage(first),
    }
