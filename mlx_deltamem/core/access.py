"""The access of tokens to the memory: which of them read, which write, and which are written as one mean."""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class WriteUnits:
    """Groups of tokens (units) that are written as one: the mean of their projections, after all tokens have read.

    Attributes:
        weights: `[B, U, T]` float32, 1 / size for the tokens of a unit, 0 for other tokens.
        mask: `[B, U]` bool, False where a row has fewer units than U.
        carried: For a pass that is split into several calls, the sums over the calls so far, by layer; else None.
        complete: False if more calls of the same pass follow. Such a call writes nothing.
    """

    weights: mx.array
    mask: mx.array
    carried: dict[int, mx.array] | None = None
    complete: bool = True


@dataclass(frozen=True)
class Access:
    """The access of the tokens of one forward pass to the memory.

    Attributes:
        mask: `[B, T]` bool, False for padding, which neither reads nor writes; None: no padding.
        writing: Whether the pass writes; if not, the state stays as it is.
        units: The units to write instead of single tokens. All tokens then read the state from before the pass.
        written: `[B, T]` bool, False for tokens that only read; None: all tokens write. Not used with `units`.
    """

    mask: mx.array | None = None
    writing: bool = True
    units: WriteUnits | None = None
    written: mx.array | None = None


def both(one: mx.array | None, other: mx.array | None) -> mx.array | None:
    """The mask that is True where both masks are; None is a mask that is True everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other
