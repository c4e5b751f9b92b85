"""The names and meanings of the baselines: `last-256`, `bm25-4`, `dense-all`, `oracle`, `summary` ..."""

import re
from dataclasses import dataclass
from enum import Enum

# The number of turns and of tokens where a name has none.
TURNS, SUMMARY_TOKENS = 4, 256
ALL_TURNS = 10**9


class Kind(Enum):
    """The way in which a baseline chooses the text that the model is shown."""

    LAST = "last"
    BM25 = "bm25"
    DENSE = "dense"
    ORACLE = "oracle"
    SUMMARY = "summary"


RETRIEVAL = (Kind.BM25, Kind.DENSE)


@dataclass(frozen=True)
class Baseline:
    """A baseline: a part of the history as text in the prompt, in place of all of it.

    Attributes:
        kind: How the part is chosen.
        amount: For `LAST`, the tokens to keep; None: as many bytes as the memory has. For `BM25` and `DENSE`, the turns
            to find. For `SUMMARY`, the most tokens of the summary. For `ORACLE`, None.
    """

    kind: Kind
    amount: int | None = None

    @property
    def grows(self) -> bool:
        """Whether the bytes that are kept grow with the history."""
        return self.kind in (*RETRIEVAL, Kind.ORACLE)

    @property
    def meaning(self) -> str:
        """A short explanation for `--help` and the report."""
        return _meaning(self)


_NAME = re.compile(r"(last|bm25|dense|summary)-([1-9][0-9]{0,8}|all)|(last|bm25|dense|oracle|summary)")
NAMES = "last, last-N, bm25, bm25-K, bm25-all, dense, dense-K, dense-all, oracle, summary or summary-N"


def find_baseline(name: str) -> Baseline | None:
    """The baseline with a name; None if there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, amount = Kind(match[1] or match[3]), match[2]
    if amount == "all":
        return Baseline(kind, ALL_TURNS) if kind in RETRIEVAL else None
    if amount is None:
        usual = {Kind.BM25: TURNS, Kind.DENSE: TURNS, Kind.SUMMARY: SUMMARY_TOKENS}
        return Baseline(kind, usual.get(kind))
    return Baseline(kind, int(amount))


def _meaning(baseline: Baseline) -> str:
    amount = baseline.amount or 0
    turns = "all turns" if amount == ALL_TURNS else f"{amount:,} turn{'s' * (amount != 1)}"
    match baseline.kind:
        case Kind.LAST if baseline.amount is None:
            return "the newest turns in the text, as many as fit into the bytes of the memory"
        case Kind.LAST:
            return f"the newest turns in the text, as many as fit into {amount:,} tokens"
        case Kind.BM25:
            return f"the {turns} that BM25 ranks first in the text" if amount != ALL_TURNS else "BM25 with all turns"
        case Kind.DENSE:
            where = "with the vectors nearest to the question"
            return f"the {turns} in the text {where}" if amount != ALL_TURNS else "nearest vectors with all turns"
        case Kind.ORACLE:
            return "only the turns that hold the evidence in the text, as the data say"
        case Kind.SUMMARY:
            return f"the frozen model's running summary in the text, of at most {amount:,} tokens"
