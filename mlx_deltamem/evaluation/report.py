"""The report of a run: `report.md`, for people, and `results.json`, for programs and for the adapter's model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_deltamem.evaluation.analysis import Result, Subset
from mlx_deltamem.evaluation.conditions import condition_named
from mlx_deltamem.evaluation.costs import Costs
from mlx_deltamem.evaluation.markdown import table
from mlx_deltamem.evaluation.statistics import RESAMPLES, Estimate
from mlx_deltamem.evaluation.tasks.health_report import NAME, Health, health_document, health_section
from mlx_deltamem.files.atomic import new_file

REPORT_FILE = "report.md"
_NOTES = f"""Scores are in percent, with 95 % intervals of a paired bootstrap ({RESAMPLES:,} resamples): what is drawn
is a group of questions about one history, the same for all conditions. Where all scores are 0, or all 100, the
interval is that of a binomial distribution. Where all questions are about one history, they are drawn one by one, and
the intervals hold for that history only. A difference whose interval leaves 0 out is in bold; one that is the same for
all questions has an interval without width, which tells nothing of other questions.

Every question begins from a cache and a memory of its own, whatever was asked before it.

Under `base` and `none` the memory is attached and stays empty, where it is an exact no-op: their speeds have its cost
in them (`mlx_deltamem.benchmark` measures speeds). β is of the tokens of histories as they are written, ‖S‖ of the
states just before a question, ‖Δo‖ / ‖o‖ of the tokens of questions: means over the layers."""


@dataclass(frozen=True)
class Report:
    """All results of a run.

    Attributes:
        model, adapter: Their names.
        settings: What decides the records, by name.
        results: By task.
        costs: By task and condition.
        pictures: By task, the names of files beside the report.
        health: What the adapter does to the model; None where that was not asked.
    """

    model: str
    adapter: str
    settings: Mapping[str, object]
    results: Sequence[Result]
    costs: Mapping[tuple[str, str], Costs]
    pictures: Mapping[str, Sequence[str]]
    health: Health | None = None


def write_results(report: Report, path: Path) -> None:
    """Write `results.json`, whose `results` a model card shows.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    document = {
        "model": report.model,
        "adapter": report.adapter,
        "settings": report.settings,
        "results": [row for result in report.results for row in _rows(result)],
        "differences": [row for result in report.results for row in _difference_rows(result)],
        "costs": [
            {"task": task, "condition": condition, **asdict(costs)} for (task, condition), costs in report.costs.items()
        ],
        "published": [
            {"task": result.task.name, **asdict(each)} for result in report.results for each in result.task.published
        ],
    }
    if report.health is not None:
        document[NAME] = health_document(report.health)
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_report(report: Report, path: Path) -> None:
    """Write `report.md`.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    parts = [f"# {report.adapter} on {report.model}"]
    if report.results:
        parts += [_NOTES, _conditions(report)]
    for result in report.results:
        parts += _sections(result, report)
    if report.health is not None:
        parts.append(health_section(report.health))
    with new_file(path) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _rows(result: Result) -> Iterable[dict[str, object]]:
    """The means of a task as rows of `results.json`; of subsets the main score only."""
    for name, subset in _named_subsets(result):
        for (condition, metric), estimate in subset.means.items():
            if not name or metric == result.metrics[0]:
                yield {
                    "task": f"{result.task.name}, {name}" if name else result.task.name,
                    "condition": condition,
                    "metric": metric,
                    "value": estimate.value,
                    "interval": [estimate.low, estimate.high],
                    "questions": estimate.questions,
                }


def _difference_rows(result: Result) -> Iterable[dict[str, object]]:
    for name, subset in _named_subsets(result):
        for (one, other), estimate in subset.differences.items():
            yield {
                "task": f"{result.task.name}, {name}" if name else result.task.name,
                "conditions": [one, other],
                "metric": result.metrics[0],
                "value": estimate.value,
                "interval": [estimate.low, estimate.high],
                "questions": estimate.questions,
            }


def _named_subsets(result: Result) -> Iterable[tuple[str, Subset]]:
    yield "", result.whole
    for subset in result.categories:
        yield subset.name, subset
    for label, subsets in result.breakdowns.items():
        for subset in subsets:
            yield f"{label} {subset.name}", subset


def _conditions(report: Report) -> str:
    names = dict.fromkeys(name for result in report.results for name in result.conditions)
    return "## Conditions\n\n" + table(
        ("condition", "what the model is given"), [(n, condition_named(n).meaning) for n in names]
    )


def _sections(result: Result, report: Report) -> list[str]:
    """The report of one task."""
    task = result.task
    pictures = [f"![{name}]({name})" for name in report.pictures.get(task.name, ())]
    return [
        f"## {task.title}",
        _scores(result),
        *pictures,
        *(_subsets(result, name, subsets) for name, subsets in _tables_of_subsets(result)),
        _differences(result),
        _costs(result, report),
        _published(result),
        "\n".join(f"- {sentence}" for sentence in task.differences),
    ]


def _scores(result: Result) -> str:
    rows = []
    for condition in result.conditions:
        means = [result.whole.means[condition, metric] for metric in result.metrics]
        seeds = [f"{mean:.1f}" for mean in result.by_seed[condition].values()]
        cut = f"{100 * result.cut[condition]:.0f} %" if condition in result.cut else "–"
        rows.append([condition, *map(_cell, means), means[0].questions, " ".join(seeds), cut])
    titles = ("condition", *result.metrics, "questions", f"{result.metrics[0]} by seed", "replies cut off")
    left_out = ", ".join(result.task.outside_mean)
    note = f"\n\nThe means leave out: {left_out}." if left_out and result.categories else ""
    return table(titles, rows) + note


def _tables_of_subsets(result: Result) -> Iterable[tuple[str, Sequence[Subset]]]:
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


def _costs(result: Result, report: Report) -> str:
    rows = []
    for condition in result.conditions:
        costs = report.costs.get((result.task.name, condition))
        if costs is not None:
            numbers = (
                costs.prompt_tps,
                costs.reply_tps,
                costs.peak_memory / 1e6,
                costs.write,
                costs.norm,
                costs.correction,
            )
            rows.append([condition, *map(_number, numbers)])
    titles = ("condition", "tokens/s read", "tokens/s generated", "peak memory, MB", "β", "‖S‖", "‖Δo‖ / ‖o‖")
    return "\n\n".join(["### Cost and effect", table(titles, rows), *_too_long(result, report)]) if rows else ""


def _too_long(result: Result, report: Report) -> Iterable[str]:
    for condition in result.conditions:
        costs = report.costs.get((result.task.name, condition))
        if costs is not None and costs.beyond_window:
            yield f"{costs.beyond_window:,} prompts under `{condition}` were longer than the model's window."


def _published(result: Result) -> str:
    """Published numbers, and ours of the condition that each is to be compared with."""
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
        "### Published numbers beside ours\n\nThey are of other models, and not to be compared where protocols differ; "
        f"see the list below.\n\n{table(titles, rows)}"
    )


def _cell(estimate: Estimate, form: str = ".1f") -> str:
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"
