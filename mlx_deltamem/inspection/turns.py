"""The facts about the turns of a chat."""

import math
from dataclasses import dataclass
from statistics import fmean

from rich.console import RenderableType

from mlx_deltamem.sessions.turns.drift import half_life
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import ALL, NONE
from mlx_deltamem.show.tables import columns, number

_MOST_TURNS = 20


@dataclass(frozen=True)
class TurnReport:
    """The facts about one turn of a chat.

    Attributes:
        message_tokens: The number of tokens of the message in its template.
        reply_tokens: The number of tokens of the reply.
        ending_tokens: The number of tokens with which the template ends the reply.
        write: The part of the turn that was written into the memory, one of `WRITES` in
            `mlx_deltamem.sessions.turns.writing`.
        remembered: Whether the turn is a text that was written into the memory without a reply.
        kept: By layer, the mean share of the state that each token of the message kept (`Drift.kept`); None if the
            file does not have it.
        changed: By layer, the distance that the turn moved the state, relative to its norm (`Drift.changed`); None if
            the file does not have it.
        kept_mean, changed_mean: The means of `kept` and `changed` over the layers.
        half_life: The number of tokens after which half of the state is left, at `kept_mean`; infinite (null in a
            document) if everything was kept.
        user, reply: The texts; None unless they were asked for.
    """

    message_tokens: int
    reply_tokens: int
    ending_tokens: int
    write: str
    remembered: bool
    kept: dict[int, float] | None
    changed: dict[int, float] | None
    kept_mean: float | None
    changed_mean: float | None
    half_life: float | None
    user: str | None
    reply: str | None

    @property
    def said(self) -> list[tuple[str, str | None]]:
        """The texts, each with the one who said it."""
        if self.remembered:
            return [("remembered", self.user)]
        return [("user", self.user), ("assistant", self.reply)]


def turn_report(turn: Turn, with_texts: bool) -> TurnReport:
    """Measure one turn.

    Args:
        turn: The turn.
        with_texts: Whether the report has the texts of the messages, which are private.
    """
    drift = turn.drift
    kept_mean = None if drift is None else fmean(drift.kept.values())
    return TurnReport(
        message_tokens=len(turn.opening.ids),
        reply_tokens=len(turn.reply_ids),
        ending_tokens=len(turn.ending.ids),
        write=turn.write,
        remembered=turn.remembered,
        kept=None if drift is None else drift.kept,
        changed=None if drift is None else drift.changed,
        kept_mean=kept_mean,
        changed_mean=None if drift is None else fmean(drift.changed.values()),
        half_life=None if kept_mean is None else half_life(kept_mean),
        user=turn.text if with_texts else None,
        reply=turn.reply if with_texts else None,
    )


def turn_table(turns: list[TurnReport]) -> RenderableType:
    """The table of a chat's last turns."""
    first = max(0, len(turns) - _MOST_TURNS)
    title = f"The last {_MOST_TURNS} of {len(turns)} turns" if first else "The turns"
    headings = ("turn", "message\ntokens", "reply\ntokens", "kept", "half-life\n(tokens)", "changed")
    table = columns(f"{title} (kept, changed: means over the layers)", *headings)
    for index, turn in enumerate(turns[first:], first + 1):
        forgets = turn.half_life is None or not math.isinf(turn.half_life)
        table.add_row(
            f"{index}{_remark(turn)}",
            str(turn.message_tokens),
            str(turn.reply_tokens),
            number(turn.kept_mean),
            number(turn.half_life) if forgets else "forever",
            number(turn.changed_mean),
        )
    return table


def _remark(turn: TurnReport) -> str:
    """A remark on a turn that was remembered, or of which not everything was written."""
    if turn.remembered:
        return " (remembered)"
    return "" if turn.write == ALL else " (read only)" if turn.write == NONE else f" (write {turn.write})"
