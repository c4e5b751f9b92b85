"""What the tokens of a forward pass may do with the memory: read it, write it, or be written as means of several."""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class WriteUnits:
    """Groups of tokens that are written as one, their mean, when the last of them has been read.

    Attributes:
        weights: `[B, U, T]` float32, 1 / size for the tokens of a unit, 0 for others.
        mask: `[B, U]` bool, False where a row has fewer units.
        carried: Where a long pass is run in several calls, the sums so far of each layer; else None.
        complete: False for a call that others of the same pass follow; it writes nothing.
    """

    weights: mx.array
    mask: mx.array
    carried: dict[int, mx.array] | None = None
    complete: bool = True


@dataclass(frozen=True)
class Access:
    """What the tokens of one forward pass may do.

    Attributes:
        mask: `[B, T]` bool, False for padding, which neither reads nor writes; None: no padding.
        writing: False leaves the state as it is.
        units: Write the means of these units instead of tokens; all tokens then read the state from before the pass.
        written: `[B, T]` bool, False for tokens that read and do not write; None: all write. Not used with `units`.
    """

    mask: mx.array | None = None
    writing: bool = True
    units: WriteUnits | None = None
    written: mx.array | None = None
