"""A batch of episodes as arrays."""

from typing import NamedTuple, cast

import mlx.core as mx


class Asked(NamedTuple):
    """The texts of N questions with their answers: at most T tokens each, at most A of them of the answer.

    Attributes:
        ids: `[N, T]` int32, padded at the right.
        mask: `[N, T]` bool, False for padding, and for the whole text of a filler question.
        positions: `[N, A]` int32, the positions of the logits that predict the answer tokens.
        targets: `[N, A]` int32, the answer tokens.
        weights: `[N, A]` float32, the weights of the answer tokens in the loss; 0 for padding, for filler questions,
            and for questions whose target is the frozen model.
        values: `[N, A]` bool, True for the tokens of the value.
        written: `[N, T]` bool, True for the tokens to write, if the batch writes its questions; None: all tokens.
        alone: `[N]` bool, True for the questions that are trained on their answer alone; None: no question.
        kinds: `[N]` int32, the number of each question's kind, 0 for a kind that is not counted; None: all 0.
    """

    ids: mx.array
    mask: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    values: mx.array
    written: mx.array | None = None
    alone: mx.array | None = None
    kinds: mx.array | None = None

    def of_rows(self, rows: mx.array | slice) -> "Asked":
        """Select questions, by `[F]` int32 or a slice, in that order."""
        return Asked(*cast(list[mx.array], [None if array is None else array[rows] for array in self]))


class Frozen(NamedTuple):
    """The F of N questions whose target is the frozen model's prediction after the same text.

    Attributes:
        rows: `[F]` int32, the indices of these questions.
        weights: `[F, A]` float32, the weights of the answer tokens in the loss; 0 for padding and filler questions.
    """

    rows: mx.array
    weights: mx.array


class Pass(NamedTuple):
    """The tokens that one forward pass over B histories reads. Each pass is as wide as its longest text needs.

    Attributes:
        ids: `[B, W]` int32, padded at the right; W is 0 if no episode has a history.
        lengths: `[B]` int32, the number of tokens of each row.
        written: `[B, W]` bool, True for the tokens to write; None: all.
        episodes: `[B]` int32, the episode of each row, if the pass leaves out some of the histories; None: it does not.
    """

    ids: mx.array
    lengths: mx.array
    written: mx.array | None
    episodes: mx.array | None = None

    @property
    def mask(self) -> mx.array:
        """`[B, W]` bool, False for padding."""
        return mx.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def written_mask(self) -> mx.array:
        """`[B, W]` bool, True for tokens that are written; False for padding."""
        return self.mask if self.written is None else self.mask & self.written


class Batch(NamedTuple):
    """B episodes with their N questions. Filler questions, which do not count, bring N to a standard size.

    Attributes:
        history: The passes over the histories, in order; at least one.
        shares: `[B, U, W]` float32, the share of each token of the only pass in its unit (a message or a sentence), for
            adapters that write means; else None. A unit of zeros is padding. The shares cover written tokens only.
        rows: `[N]` int32, the episode of each question.
        writes: Whether the questions are written into the memory as they are read. It holds for the whole batch.
        asked: The questions.
        context: The same questions with the whole chat in their text, for a teacher; else None.
        frozen: The questions whose target is the frozen model; None if there are none.
        size: B, the number of episodes.
        total: The sum of the weights of all answer tokens as if every record had the weight 1, a float32. The loss is
            divided by it, so that the weight of a record counts in a batch of one as well.
    """

    history: tuple[Pass, ...]
    shares: mx.array | None
    rows: mx.array
    writes: bool
    asked: Asked
    context: Asked | None
    frozen: Frozen | None
    size: int
    total: mx.array

    @property
    def has_history(self) -> bool:
        """Whether any episode has a history."""
        return self.history[0].ids.size > 0

    @property
    def history_tokens(self) -> int:
        """The number of tokens of all histories, without padding."""
        return sum(int(each.lengths.sum()) for each in self.history)

    @classmethod
    def of(cls, *values: mx.array | bool | int | tuple | None) -> "Batch":
        """Make a batch from its fields after a function transformation, which turns named tuples into plain ones."""
        plain = cast(
            tuple[tuple, mx.array | None, mx.array, bool, tuple, tuple | None, tuple | None, int, mx.array], values
        )
        history, shares, rows, writes, asked, context, frozen, size, total = plain
        return cls(
            tuple(Pass(*each) for each in history),
            shares,
            rows,
            writes,
            Asked(*asked),
            None if context is None else Asked(*context),
            None if frozen is None else Frozen(*frozen),
            size,
            total,
        )
