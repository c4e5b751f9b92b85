"""The beginning of a reply, given by the user: `--prefill-response` of mlx_lm.generate."""

from collections.abc import Sequence

import mlx.core as mx


class Beginning:
    """A logits processor that makes a reply begin with given tokens.

    The tokens become part of the reply as if the model had generated them: they are run, written and kept like its
    other tokens. Use a new one for each reply.

    Args:
        ids: The tokens.
    """

    def __init__(self, ids: Sequence[int]):
        self._left = list(ids)

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        """From the logits `[1, V]` of the next token, those that allow only the given one; `logits` if none is left."""
        if not self._left:
            return logits
        token = self._left.pop(0)
        return mx.where(mx.arange(logits.shape[-1]) == token, mx.array(0.0, logits.dtype), -mx.inf)[None]
