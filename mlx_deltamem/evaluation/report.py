"""The results of an evaluation for people: the file `report.md`, and the tables on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from mlx_deltamem.evaluation.analysis import Result, Subset
from mlx_deltamem.evaluation.budget import budget_section
from mlx_deltamem.evaluation.conditions import parse_conditions
from mlx_deltamem.evaluation.effects import Costs
from mlx_deltamem.evaluation.markdown import table
from mlx_deltamem.evaluation.results import Evaluation
from mlx_deltamem.evaluation.statistics import RESAMPLES, Estimate
from mlx_deltamem.evaluation.tasks.health_report import health_section
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.show.tables import columns

REPORT_FILE = "report.md"
_NOTES = f"""Scores are in percent, with 95 % intervals of a paired bootstrap ({RESAMPLES:,} resamples). The bootstrap
draws groups of questions about one history, the same groups for all conditions. If all scores are 0, or all are 100,
the interval is that of a binomial distribution. If all questions are about one history, the bootstrap draws single
questions, and the intervals hold for that history only. A difference is in bold if its interval does not contain 0. A
difference that is the same for all questions has an interval of width 0, which says nothing about other questions.

Every question starts with a separate cache and memory. Earlier questions have no effect on it.

Under `base` the memory is attached and stays empty, and so it does under `none`, unless `--write all` also writes the
question. An empty memory changes no output, but the speeds include its cost (`mlx_deltamem.benchmark` measures speeds).
β is the mean over the tokens of histories as they are written, ‖S‖ over the states just before a question, and ‖Δo‖ /
‖o‖ over the tokens of questions; all three are means over the layers."""


def write_report(evaluation: Evaluation, pictures: Mapping[str, Sequence[str]], path: Path) -> None:
    """Write `report.md`.

    Args:
        evaluation: The results.
        pictures: By task, the names of the picture files in the folder of the report.
        path: The file.

    Raises:
        OSError: The file cannot be written. An old file is unchanged.
    """
    parts = [f"# {evaluation.adapter} on {evaluation.model}"]
    if evaluation.results:
        parts += [_NOTES, _conditions(evaluation)]
    for result in evaluation.results:
        parts += _sections(result, evaluation.costs_of(result.task.name), pictures.get(result.task.name, ()))
    if evaluation.health is not None:
        parts.append(health_section(evaluation.health))
    with new_file(path) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def result_tables(result: Result) -> list[Table]:
    """The tables of a task on the terminal: the main score under each condition, and the differences."""
    main = result.metrics[0]
    subsets = [("all", result.whole), *((subset.name, subset) for subset in result.categories)]
    subsets += [(f"{label} {each.name}", each) for label, found in result.breakdowns.items() for each in found]
    scores = columns(f"{result.task.title}: {main}, in percent", "questions", *result.conditions, texts=(0,))
    for name, subset in subsets:
        means = [subset.means[condition, main] for condition in result.conditions]
        cells = [f"{mean.value:.1f}\n{mean.low:.0f}–{mean.high:.0f}" for mean in means]
        scores.add_row(f"{name}: {means[0].questions:,}", *cells)
    if not result.whole.differences:
        return [scores]
    differences = columns("Differences", "", main, "95 % interval", texts=(0,))
    for (one, other), each in result.whole.differences.items():
        differences.add_row(f"{one} − {other}", f"{each.value:+.1f}", f"{each.low:+.1f} to {each.high:+.1f}")
    return [scores, differences]


def _conditions(evaluation: Evaluation) -> str:
    asked = parse_conditions([name for result in evaluation.results for name in result.conditions])
    rows = [(condition.name, condition.meaning) for condition in asked]
    return "## Conditions\n\n" + table(("condition", "what the model is given"), rows)


def _sections(result: Result, costs: Mapping[str, Costs], pictures: Sequence[str]) -> list[str]:
    """The report of one task.

    Args:
        result: The results of the task.
        costs: The costs, by condition.
        pictures: The names of the picture files.
    """
    return [
        f"## {result.task.title}",
        _scores(result),
        *(f"![{name}]({name})" for name in pictures),
        *(_subsets(result, name, subsets) for name, subsets in _tables_of_subsets(result)),
        _differences(result),
        _costs(result, costs),
        budget_section(result, costs),
        _published(result),
        "\n".join(f"- {sentence}" for sentence in result.task.differences),
    ]


def _scores(result: Result) -> str:
    rows = []
    for condition in result.conditions:
        means = [result.whole.means[condition, metric] for metric in result.metrics]
        seeds = [f"{mean:.1f}" for mean in result.by_seed[condition].values()]
        cut, evidence = (
            f"{100 * shares[condition]:.0f} %" if condition in shares else "–"
            for shares in (result.cut, result.evidence)
        )
        rows.append([condition, *map(_cell, means), means[0].questions, " ".join(seeds), cut, evidence])
    titles = (
        "condition",
        *result.metrics,
        "questions",
        f"{result.metrics[0]} by seed",
        "replies cut off",
        "evidence in the text",
    )
    left_out = ", ".join(result.task.outside_mean)
    note = f"\n\nThe means leave out: {left_out}." if left_out and result.categories else ""
    return table(titles, rows) + note


def _tables_of_subsets(result: Result) -> Iterator[tuple[str, Sequence[Subset]]]:
    if result.categories:
        yield "category", result.categories
    yield from result.breakdowns.items()


def _subsets(result: Result, name: str, subsets: Sequence[Subset]) -> str:
    main = result.metrics[0]
    rows = []
    for subset in subsets:
        means = [subset.means[condition, main] for condition in result.conditions]
        rows.append([subset.name, means[0].questions, *map(_cell, means)])
    return f"### {main} by {name}\n\n" + table((name, "questions", *result.conditions), rows)


def _differences(result: Result) -> str:
    if not result.whole.differences:
        return ""
    rows = []
    for (one, other), estimate in result.whole.differences.items():
        cell = _cell(estimate, "+.1f")
        clear = estimate.low > 0 or estimate.high < 0
        other_replies = f"{100 * result.distinct_replies[one, other]:.0f} %"
        rows.append([f"{one} − {other}", f"**{cell}**" if clear else cell, other_replies])
    titles = ("difference", result.metrics[0], "replies that differ")
    return f"### Differences\n\n{table(titles, rows)}"


def _costs(result: Result, costs: Mapping[str, Costs]) -> str:
    known = [(condition, costs[condition]) for condition in result.conditions if condition in costs]
    if not known:
        return ""
    rows = [
        (
            condition,
            _number(each.prompt_tps),
            _number(each.reply_tps),
            _number(each.peak_memory / 1e6),
            _number(each.write),
            _number(each.norm),
            _number(each.correction),
        )
        for condition, each in known
    ]
    titles = ("condition", "tokens/s read", "tokens/s generated", "peak memory, MB", "β", "‖S‖", "‖Δo‖ / ‖o‖")
    too_long = [
        f"{each.beyond_window:,} prompts under `{condition}` were longer than the model's window."
        for condition, each in known
        if each.beyond_window
    ]
    return "\n\n".join(["### Cost and effect", table(titles, rows), *too_long])


def _published(result: Result) -> str:
    """The published scores, each beside the score of the condition that it is to be compared with."""
    subsets = {"": result.whole} | {subset.name: subset for subset in result.categories}
    rows = []
    for each in result.task.published:
        subset = subsets.get(each.category)
        own = subset.means.get((each.condition, each.metric)) if subset is not None else None
        cells = (each.method, each.category or "all", each.metric, f"{each.value:.2f}")
        rows.append([*cells, each.condition, "" if own is None else _cell(own), each.source])
    if not rows:
        return ""
    titles = ("method", "category", "score", "published", "our condition", "ours", "source")
    return (
        "### Published numbers beside ours\n\nThey belong to other models. Do not compare them where the protocols "
        f"differ; the list below says where.\n\n{table(titles, rows)}"
    )


def _cell(estimate: Estimate, form: str = ".1f") -> str:
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"
