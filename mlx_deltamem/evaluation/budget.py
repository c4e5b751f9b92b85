"""The costs of each condition: bytes kept between history and question, tokens read and seconds for a question."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_deltamem.evaluation.analysis import Result
from mlx_deltamem.evaluation.baselines.baseline import Kind
from mlx_deltamem.evaluation.conditions import Condition, find_condition
from mlx_deltamem.evaluation.effects import Costs
from mlx_deltamem.evaluation.markdown import table

TURNS = 1_000
_NOTES = f"""Bytes are those of a file: the text as JSON, the memory as safetensors, an index as its library saves it.
Bytes and tokens that grow with the history are scaled in proportion from the measured histories to {TURNS:,} turns; the
newest text grows until it fills its room. The memory and a summary have the same size after any number of turns. An
index has parts of a fixed size, which are scaled too: measured with a few turns, its number for {TURNS:,} is too large.

The seconds are not scaled: they are those of the measured histories. A history is taken in by writing, indexing or
summarising it. The time of a question ends with the reply. Of a batch, a question has its share; with `--batch-size 1`
it is what a user waits. Text that questions share counts for each of them. The weights of the model and of an embedding
model are not counted."""


@dataclass(frozen=True)
class Budget:
    """The costs of a condition.

    Attributes:
        kept_bytes, read_tokens: As measured: the bytes that are kept, and the tokens that are read for a question.
        turns: The turns of the measured histories.
        told_seconds, asked_seconds: The time for taking in a history, and for a question.
        long_bytes, long_tokens: Bytes and tokens after `TURNS` turns.

    All are means over the questions.
    """

    kept_bytes: float
    read_tokens: float
    turns: float
    told_seconds: float
    asked_seconds: float
    long_bytes: float
    long_tokens: float


def budgets(result: Result, costs: Mapping[str, Costs]) -> dict[str, Budget]:
    """The budgets of a task by condition, in the order of the result; without conditions that were not measured."""
    found = {}
    for name in result.conditions:
        condition = find_condition(name)
        if condition is not None and name in costs and (budget := _budget(condition, costs[name])) is not None:
            found[name] = budget
    return found


def budget_section(result: Result, costs: Mapping[str, Costs]) -> str:
    """The table of bytes, tokens and seconds for `report.md`; empty if nothing was measured."""
    rows = [
        (
            name,
            f"{each.kept_bytes:,.0f}",
            f"{each.long_bytes:,.0f}",
            f"{each.read_tokens:,.0f}",
            f"{each.long_tokens:,.0f}",
            f"{each.told_seconds:.3g}",
            f"{each.asked_seconds:.3g}",
        )
        for name, each in budgets(result, costs).items()
    ]
    if not rows:
        return ""
    turns = next(iter(budgets(result, costs).values())).turns
    now, later = f"of {turns:.3g} turns", f"of {TURNS:,} turns"
    titles = (
        "condition",
        f"bytes kept {now}",
        f"bytes kept {later}",
        f"tokens read a question {now}",
        f"tokens read a question {later}",
        "seconds, taken in",
        "seconds, a question",
    )
    return f"### What it takes\n\n{table(titles, rows)}\n\n{_NOTES}"


def _budget(condition: Condition, costs: Costs) -> Budget | None:
    """The budget of a condition; None if it was not measured."""
    measured = costs.kept_bytes, costs.memory_bytes, costs.read_tokens, costs.turns
    if any(each is None for each in measured):
        return None
    kept, memory, read, turns = (each or 0.0 for each in measured)
    fixed = min(kept, memory) if condition.keeps_memory else 0.0
    text_factor, read_factor = _factors(condition, TURNS / turns if turns else 1.0, kept - fixed, memory, read)
    return Budget(
        kept_bytes=kept,
        read_tokens=read,
        turns=turns,
        told_seconds=costs.told_seconds or 0.0,
        asked_seconds=costs.asked_seconds or 0.0,
        long_bytes=fixed + (kept - fixed) * text_factor,
        long_tokens=read * read_factor,
    )


def _factors(
    condition: Condition, longer: float, text_bytes: float, memory_bytes: float, read: float
) -> tuple[float, float]:
    """The factors by which the text that is kept, and the tokens that are read, grow with the history.

    Args:
        condition: The condition.
        longer: The factor by which the history grows.
        text_bytes, memory_bytes: The bytes of the text that is kept, and of a memory.
        read: The tokens that are read for a question.
    """
    baseline, room = condition.baseline, None
    if baseline is not None and baseline.kind is Kind.LAST:
        room = memory_bytes / text_bytes if baseline.amount is None and text_bytes else (baseline.amount or read) / read
    elif isinstance(condition.chat, int):
        room = condition.chat / read
    if room is not None:
        # The newest text grows until it fills its room.
        factor = min(longer, max(1.0, room))
        return factor, factor
    return longer if condition.grows else 1.0, longer if condition.reads_all else 1.0
