"""The access of tokens to the memory: which of them read, which write, and which are written as one mean."""

from collections.abc import Sequence
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

    def first(self, tokens: int) -> "WriteUnits":
        """The units of the first tokens: the mean of a unit is then that of its tokens among them.

        Raises:
            ValueError: The pass is split into several calls, so the first tokens of one call are no units.
        """
        if self.carried is not None:
            raise ValueError(
                "the memory cannot be taken back into the middle of a text that was written as means of spans in "
                "several calls; take back all of it, or less than what follows it"
            )
        members = (self.weights[..., :tokens] > 0).astype(mx.float32)
        sizes = members.sum(axis=-1)
        return WriteUnits(members / mx.maximum(sizes, 1)[..., None], self.mask & (sizes > 0))


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

    def first(self, tokens: int) -> "Access":
        """The access of the first tokens of the pass.

        Raises:
            ValueError: The units are those of several calls (`WriteUnits.first`).
        """
        mask, units, written = self.mask, self.units, self.written
        if mask is None and units is None and written is None:
            return self
        return Access(
            None if mask is None else mask[:, :tokens],
            self.writing,
            None if units is None else units.first(tokens),
            None if written is None else written[:, :tokens],
        )

    def goes_on_in(self, other: "Access") -> bool:
        """Whether the tokens of this pass and those of a later one could have been one pass (`joined`)."""
        return (
            self.units is None
            and other.units is None
            and self.writing == other.writing
            # A pass with padding may use another engine than one without.
            and (self.mask is None) == (other.mask is None)
            and (self.written is None) == (other.written is None)
        )

    @classmethod
    def joined(cls, parts: Sequence["Access"]) -> "Access":
        """The access of consecutive passes of one kind (`goes_on_in`) as one pass."""
        masks = [part.mask for part in parts if part.mask is not None]
        written = [part.written for part in parts if part.written is not None]
        return cls(
            mx.concatenate(masks, axis=1) if masks else None,
            parts[0].writing,
            written=mx.concatenate(written, axis=1) if written else None,
        )


def both(one: mx.array | None, other: mx.array | None) -> mx.array | None:
    """The mask that is True where both masks are; None is a mask that is True everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other
