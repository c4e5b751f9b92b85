"""`EntryPast`: what the memory's entry in a prompt cache knows of the past of its rows."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_deltamem.core.past import Kept, Pass, Past, Start, ended, joined, kept, passes_of, recent, without

# Passes are joined when they have this many tokens together.
KEPT = 64
_UNKNOWN = Start(is_whole=False)


@dataclass(frozen=True, slots=True, eq=False)
class EntryPast:
    """The past of the rows of an entry. It never changes: the methods return new ones.

    Attributes:
        rows: The past of each row. A single one stands for all rows.
        after: The states that the past leads to. Where the entry holds other arrays, the memory was set.
        short: The latest passes, which are short and whose rows are those of the batch; each with its tokens that are
            there.
        short_tokens: The number of tokens in `short`.
        missed: The tokens that could not be taken back, although the text was trimmed by them.
    """

    rows: Sequence[Past] = (_UNKNOWN,)
    after: Sequence[mx.array] = ()
    short: Sequence[tuple[Pass, int]] = ()
    short_tokens: int = 0
    missed: int = 0

    @classmethod
    def begun(cls, start: Start, states: Sequence[mx.array]) -> "EntryPast":
        """A new past that begins with these states."""
        return cls((start,), list(states))

    @property
    def has_tokens(self) -> bool:
        """Whether tokens of any row can be taken back."""
        return any(row.total for row in self.rows)

    @property
    def bytes_by_array(self) -> dict[int, int]:
        """The bytes of each array that is kept, by its identity."""
        return {id(array): array.nbytes for each in passes_of(self.rows) for array in each.arrays()}

    def leads_to(self, states: Sequence[mx.array]) -> bool:
        """Whether the past leads to these states, and not to others that were set."""
        return len(self.after) == len(states) and all(map(operator.is_, self.after, states))

    def by_row(self, batch: int, states: Sequence[mx.array]) -> list[Past]:
        """The past of each of `batch` rows, which have these states now."""
        rows: Sequence[Past] = self.rows if self.leads_to(states) else (_UNKNOWN,)
        return list(rows) * batch if len(rows) == 1 else list(rows)

    def with_rows(self, rows: Sequence[Past], states: Sequence[mx.array]) -> "EntryPast":
        """The past of other rows, which lead to these states."""
        return replace(self, rows=list(rows), after=list(states), short=(), short_tokens=0)

    def missing(self, tokens: int, states: Sequence[mx.array]) -> "EntryPast":
        """The past after tokens could not be taken back."""
        return replace(self, after=list(states), missed=tokens)

    def leading_to(self, states: Sequence[mx.array]) -> "EntryPast":
        """The same past, after the entry got new arrays with the same states."""
        return replace(self, after=list(states))

    def trimmed(self, rows: Sequence[Past], states: Sequence[mx.array], tokens: int) -> "EntryPast":
        """The past after tokens were taken back from all rows, which lead to these states."""
        short = without(self.short, tokens)
        return replace(self, rows=rows, after=list(states), short=short, short_tokens=_tokens(short))

    def extended(self, last: Pass, text_can_be_trimmed: Callable[[], bool]) -> tuple["EntryPast", list[mx.array]]:
        """The past after one more pass of all rows.

        Args:
            last: The pass.
            text_can_be_trimmed: Whether the keys and values can be trimmed. If not, older passes are not kept.

        Returns:
            The past, and arrays to evaluate with the output of the pass.
        """
        before = [ended(row) for row in (list(self.rows) * last.rows if len(self.rows) == 1 else self.rows)]
        arrays: list[mx.array] = []
        if last.tokens >= KEPT:
            before, arrays = _joined_rows(before, self.short, last.before)
        rows: list[Past] = [kept(last, row, last.tokens, past) for row, past in enumerate(before)]
        if last.tokens < KEPT:
            short, tokens = [*self.short, (last, last.tokens)], self.short_tokens + last.tokens
            if tokens < KEPT:
                return replace(self, rows=rows, after=last.after, short=short, short_tokens=tokens), []
            rows, arrays = _joined_rows(rows, short, last.after)
        if not text_can_be_trimmed():
            rows = [recent(row, KEPT) for row in rows]
        return replace(self, rows=rows, after=last.after, short=(), short_tokens=0), arrays


def _joined_rows(
    rows: list[Past], short: Sequence[tuple[Pass, int]], after: Sequence[mx.array]
) -> tuple[list[Past], list[mx.array]]:
    """Join the latest short passes of rows, which end in the states `after`.

    Returns:
        The past of each row, and the arrays that this makes.
    """
    last = joined(short, after) if len(short) > 1 else None
    if last is None or last.rows != len(rows):
        return rows, []
    together: list[Past] = []
    for row, past in enumerate(rows):
        earlier = past
        for _ in short:
            earlier = earlier.earlier if isinstance(earlier, Kept) else earlier
        together.append(kept(last, row, last.tokens, earlier))
    return together, [layer.projected for layer in last.layers.values()]


def _tokens(short: Sequence[tuple[Pass, int]]) -> int:
    return sum(count for _, count in short)
