"""The results of an evaluation as a table on the terminal."""

from rich.table import Table

from mlx_deltamem.evaluation.analysis import Result
from mlx_deltamem.evaluation.statistics import Estimate
from mlx_deltamem.evaluation.tasks.health import MEANINGS
from mlx_deltamem.evaluation.tasks.health_report import Health
from mlx_deltamem.show.tables import columns


def result_tables(result: Result) -> list[Table]:
    """The scores under each condition, and their differences."""
    main = result.metrics[0]
    subsets = [("all", result.whole), *((subset.name, subset) for subset in result.categories)]
    subsets += [(f"{label} {each.name}", each) for label, found in result.breakdowns.items() for each in found]
    scores = columns(f"{result.task.title}: {main}, in percent", "questions", *result.conditions, texts=(0,))
    for name, subset in subsets:
        means = [subset.means[condition, main] for condition in result.conditions]
        scores.add_row(f"{name}: {means[0].questions:,}", *map(_estimate, means))
    if not result.whole.differences:
        return [scores]
    differences = columns("Differences", "", main, "95 % interval", texts=(0,))
    for (one, other), each in result.whole.differences.items():
        differences.add_row(f"{one} − {other}", f"{each.value:+.1f}", f"{each.low:+.1f} to {each.high:+.1f}")
    return [scores, differences]


def health_tables(health: Health) -> list[Table]:
    """The tables of the model's health: ratios of perplexities, and replies that are the frozen model's."""
    ratios = columns("Perplexity of plain English ÷ the frozen model's", "a text that is", "ratio", "95 %", texts=(0,))
    for way, each in health.ratios.items():
        ratios.add_row(MEANINGS[way], f"{each.value:.3f}", f"{each.low:.2f}–{each.high:.2f}")
    title = f"Greedy replies to {len(health.replies)} prompts with nothing told, in percent"
    replies = columns(title, "as the frozen model", "", "95 %", texts=(0,))
    for name, each in (("whole replies", health.equal), ("the likeliest token at each place", health.alike)):
        replies.add_row(name, f"{each.value:.1f}", f"{each.low:.0f}–{each.high:.0f}")
    return [ratios, replies]


def _estimate(each: Estimate) -> str:
    return f"{each.value:.1f}\n{each.low:.0f}–{each.high:.0f}"
