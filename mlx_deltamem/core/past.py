"""The passes that a memory has gone through, so that its last tokens can be taken back.

A recurrence has no inverse: to take tokens back, the memory goes to the state before their pass and writes the tokens
that stay once more. For that, a pass keeps the states before it and the projections of its tokens, P numbers for each
token and layer (`Variant.columns`). Both are arrays that the pass has computed anyway, so to keep them costs no
computation. Single tokens and short passes are joined later (`joined`), so that a long reply is not many small arrays.

Each row of a batch has its own past (`Kept`), because rows may join and leave a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import mlx.core as mx

from mlx_deltamem.core.access import Access

# Writes tokens: from their projections `[B, T, P]`, the states before them and their access to the states after them.
WriteTokens: TypeAlias = Callable[[mx.array, mx.array, Access], mx.array]
_Self = TypeVar("_Self", bound="_Shared")


class _Shared:
    """A part of the past. It never changes, so that a copy of a prompt cache shares it."""

    __slots__ = ()

    def __deepcopy__(self: _Self, memo: object) -> _Self:
        return self


@dataclass(slots=True, eq=False)
class LayerPass(_Shared):
    """A pass of one layer, to write its first tokens once more.

    Attributes:
        write: Writes tokens into a state, as the pass did. Passes that were written alike share one object.
        projected: `[B, T, P]`, the projections of the tokens.
        access: What the tokens may do.
    """

    write: WriteTokens
    projected: mx.array
    access: Access

    def after(self, tokens: int, before: mx.array) -> mx.array:
        """The states after the first `tokens` tokens, from those before the pass.

        Raises:
            ValueError: The pass writes spans of tokens that begin or end in another pass (`Access.first`).
        """
        before = rows_of(before, self.projected.shape[0])
        return self.write(self.projected[:, :tokens], before, self.access.first(tokens))

    def goes_on_in(self, other: "LayerPass") -> bool:
        """Whether this pass and a later one can be joined."""
        return (
            self.write is other.write
            and self.projected.shape[0] == other.projected.shape[0]
            and self.projected.dtype == other.projected.dtype
            and self.access.goes_on_in(other.access)
        )


@dataclass(slots=True, eq=False)
class Pass(_Shared):
    """A call of an attached model.

    Attributes:
        rows: B, the number of rows.
        tokens: T, the number of tokens in each row.
        before, after: By layer index, the states before and after the call.
        layers: By layer index, the passes of the layers that wrote. The states of other layers stayed as they were.
    """

    rows: int
    tokens: int
    before: Sequence[mx.array]
    after: Sequence[mx.array]
    layers: Mapping[int, LayerPass]

    def states(self, tokens: int) -> Sequence[mx.array]:
        """By layer index, the states after the first `tokens` tokens."""
        if tokens in (0, self.tokens):
            return self.after if tokens else self.before
        return [
            self.layers[layer].after(tokens, state) if layer in self.layers else state
            for layer, state in enumerate(self.before)
        ]

    def arrays(self) -> list[mx.array]:
        """The arrays that are kept for this pass alone."""
        return [*self.before, *(layer.projected for layer in self.layers.values())]


@dataclass(slots=True, eq=False)
class Start(_Shared):
    """The beginning of what is known about a row.

    Attributes:
        is_whole: Whether the text of the prompt cache was empty then. Otherwise there are tokens before.
    """

    is_whole: bool
    total: int = 0


@dataclass(slots=True, eq=False)
class Kept(_Shared):
    """The past of one row: a pass, and the past before it.

    Attributes:
        last: The last pass.
        row: The row in that pass.
        tokens: The number of tokens of that pass that are still there, the first ones.
        earlier: The past before the pass.
        total: The number of tokens that can be taken back.
    """

    last: Pass
    row: int
    tokens: int
    earlier: "Past"
    total: int


Past: TypeAlias = Kept | Start


def kept(last: Pass, row: int, tokens: int, earlier: Past) -> Kept:
    """The past of a row after the first `tokens` tokens of a pass."""
    return Kept(last, row, tokens, earlier, earlier.total + tokens)


def taken_back(past: Past, tokens: int) -> Past:
    """The past of a row without its last tokens, at most `past.total`."""
    while isinstance(past, Kept):
        if tokens <= past.tokens:
            return kept(past.last, past.row, past.tokens - tokens, past.earlier)
        tokens -= past.tokens
        past = past.earlier
    return past


def is_whole(past: Past) -> bool:
    """Whether a past reaches back to the beginning of the text."""
    while isinstance(past, Kept):
        past = past.earlier
    return past.is_whole


def ended(past: Past) -> Past:
    """A past without a pass of which no token is left."""
    return past.earlier if isinstance(past, Kept) and not past.tokens else past


def recent(past: Past, tokens: int) -> Past:
    """The last passes of a row, with at least this many tokens together, without the past before them."""
    links: list[Kept] = []
    while isinstance(past, Kept) and sum(link.tokens for link in links) < tokens:
        links.append(past)
        past = past.earlier
    rest: Past = Start(is_whole=False) if isinstance(past, Kept) else past
    for link in reversed(links):
        rest = kept(link.last, link.row, link.tokens, rest)
    return rest


def without(passes: Iterable[tuple[Pass, int]], tokens: int) -> list[tuple[Pass, int]]:
    """The passes without their last tokens; empty if there are not that many."""
    left = list(passes)
    while left and tokens:
        last, count = left.pop()
        if count > tokens:
            left.append((last, count - tokens))
        tokens = max(0, tokens - count)
    return left


def states_of(rows: Sequence[Past], present: Sequence[mx.array]) -> list[mx.array]:
    """By layer index, the states at the end of these pasts, as one batch.

    Args:
        rows: The past of each row.
        present: By layer index, the present states, which are those of rows without a known pass.
    """
    places = {(id(row.last), row.tokens): row for row in rows if isinstance(row, Kept)}
    states = {place: row.last.states(row.tokens) for place, row in places.items()}
    if len(places) == 1:
        (row,), (whole,) = places.values(), states.values()
        if [past.row if isinstance(past, Kept) else None for past in rows] == list(range(row.last.rows)):
            return list(whole)
    by_row = [
        [
            _row(state, past.row if isinstance(past, Kept) else index)
            for state in (states[id(past.last), past.tokens] if isinstance(past, Kept) else present)
        ]
        for index, past in enumerate(rows)
    ]
    return [mx.concatenate(list(layer)) for layer in zip(*by_row, strict=True)]


def passes_of(rows: Sequence[Past]) -> list[Pass]:
    """All passes in the past of some rows, each once."""
    found: dict[int, Pass] = {}
    for row in rows:
        past = row
        while isinstance(past, Kept) and id(past.last) not in found:
            found[id(past.last)] = past.last
            past = past.earlier
    return list(found.values())


def joined(passes: Sequence[tuple[Pass, int]], after: Sequence[mx.array]) -> Pass | None:
    """Join consecutive passes of the same rows into one; None if they are of different kinds.

    Args:
        passes: The passes, each with the number of its first tokens that are still there.
        after: By layer index, the states after the last of these tokens.
    """
    first = passes[0][0]
    if any(each.layers.keys() != first.layers.keys() or each.rows != first.rows for each, _ in passes):
        return None
    layers: dict[int, LayerPass] = {}
    for layer, begin in first.layers.items():
        parts = [(each.layers[layer], tokens) for each, tokens in passes]
        if not all(begin.goes_on_in(part) for part, _ in parts):
            return None
        projected = mx.concatenate([part.projected[:, :tokens] for part, tokens in parts], axis=1)
        access = Access.joined([part.access.first(tokens) for part, tokens in parts])
        layers[layer] = LayerPass(begin.write, projected, access)
    return Pass(first.rows, sum(tokens for _, tokens in passes), first.before, after, layers)


def rows_of(state: mx.array, batch: int) -> mx.array:
    """A state with the rows of a batch; a state of one row is that of all rows."""
    return mx.broadcast_to(state, (batch, *state.shape[1:])) if state.shape[0] == 1 != batch else state


def _row(state: mx.array, row: int) -> mx.array:
    """One row of a state; a state of one row is that of all rows."""
    return state if state.shape[0] == 1 else state[row : row + 1]
