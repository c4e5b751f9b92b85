"""Which histories are read in one pass: those without a text are left out, and short ones may be read by themselves."""

from collections.abc import Sequence

# A pass costs as much as this many tokens, besides its tokens: an estimate for a model of 135M parameters on a CPU.
_TOKENS_OF_A_PASS = 64


def rows_of_passes(lengths: Sequence[int]) -> list[list[int] | None]:
    """Divide texts into one or two passes, so that few tokens are padding.

    Args:
        lengths: The number of tokens of each text, 0 for a row without one.

    Returns:
        The rows of each pass, from the shortest text to the longest; None stands for all rows.
    """
    order = sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__)
    if not order:
        return [None]

    def cost(border: int) -> int:
        """The tokens of two passes, over the rows of `order` before the border and after it; 0: of one pass."""
        longest = lengths[order[-1]]
        if not border:
            return len(order) * longest
        return border * lengths[order[border - 1]] + (len(order) - border) * longest + _TOKENS_OF_A_PASS

    border = min(range(len(order)), key=cost)
    if border:
        return [order[:border], order[border:]]
    return [None if len(order) == len(lengths) else order]
