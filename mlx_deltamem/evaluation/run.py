"""A run: ask every question under every condition, and write each record as soon as it is there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.asking import Asker, Job
from mlx_deltamem.evaluation.baselines.baseline import Kind
from mlx_deltamem.evaluation.baselines.showing import check_evidence
from mlx_deltamem.evaluation.conditions import CONDITIONS, Condition, Memory
from mlx_deltamem.evaluation.dealing import MEASURES, RECORDS, Dealt, Key, Rows
from mlx_deltamem.evaluation.decoding import GeneratedReply
from mlx_deltamem.evaluation.effects import Measures
from mlx_deltamem.evaluation.partners import partner_groups
from mlx_deltamem.evaluation.prepared import PreparedTask
from mlx_deltamem.evaluation.prompts import Prompts
from mlx_deltamem.evaluation.records import JsonLines, MeasuresRow, Record
from mlx_deltamem.ranks.world import World
from mlx_deltamem.show.progress import Counted

RECORDS_FILE, MEASURES_FILE = "records.jsonl", "measures.jsonl"

# The most characters in all prompts of a batch. The keys and values of a prompt take memory, so long prompts run alone.
_MOST_CHARACTERS = 60_000


@dataclass(frozen=True)
class Plan:
    """The plan of an evaluation, the same for every task.

    Attributes:
        conditions: The conditions.
        seeds: The sampling seeds. Greedy replies are asked with the first one only.
        batch_size: The most questions in a batch.
        seed: The seed that chooses the memory of each group under `shuffled`.
    """

    conditions: tuple[Condition, ...]
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 16
    seed: int = 0


class EvaluationRun:
    """A run in a folder. A run that was stopped is continued: recorded questions are not asked again.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        plan: What to ask.
        folder: The folder of the records. It exists.
        dealt: The part of this rank; None: all of the run.

    Attributes:
        records: The replies and scores.
        measures: The measures of each batch.
        dealt: The part of this rank.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, plan: Plan, folder: Path, dealt: Dealt | None = None
    ):
        self._folder = folder
        self.dealt = dealt or Dealt(World(0, 1))
        self._part = PartOfRun(model, tokenizer, plan, self.dealt)
        self._tokenizer = tokenizer
        self._plan = plan
        self.records: JsonLines[Record] = JsonLines(folder / RECORDS_FILE)
        self.measures: JsonLines[MeasuresRow] = JsonLines(folder / MEASURES_FILE)
        self._done = {(row["task"], row["condition"], row["seed"], row["id"]) for row in self.records.rows}

    def jobs(self, task: PreparedTask) -> list[Job]:
        """The questions of a task under each condition, one job for each seed."""
        return self._part.jobs(task)

    def amount(self, task: PreparedTask) -> int:
        """The number of replies under all conditions."""
        return len(self.jobs(task)) * len(self._plan.conditions)

    def check(self, task: PreparedTask) -> None:
        """Check, before anything is asked, that the folder's records belong to the questions of the task.

        The task may have more questions than the records, or fewer.

        Raises:
            ValueError: A record belongs to another question or memory, there is no other history for `shuffled`,
                the data do not say where the evidence is (`oracle`), or the chat template refuses the prompts of the
                first question.
        """
        partners = self._part.partners(task)
        prompts, first = Prompts(self._tokenizer, by_token=True), task.questions[0]
        for condition in self._plan.conditions:
            prompts.prompt(first, condition.text, writing=False)
            if condition.memory is not Memory.EMPTY:
                prompts.history(first)
            if condition.baseline is not None and condition.baseline.kind is Kind.ORACLE:
                for question in task.questions:
                    check_evidence(question)
        for row in self.records.rows:
            if row["task"] != task.name or row["id"] not in task.digests:
                continue
            memory = row.get("memory_of")
            same_memory = memory is None or memory == partners.get(row["group"], memory)
            if row.get("asked") != task.digests[row["id"]] or not same_memory:
                raise ValueError(
                    f"the run in {self._folder} has another {task.name} question {row['id']!r}; use the same data and "
                    "options, or name a new folder"
                )

    def ask(self, tasks: Sequence[PreparedTask], progress: Counted) -> None:
        """Ask the questions of tasks under all conditions, except those that have a record.

        Other ranks ask their parts meanwhile, by `PartOfRun.ask`. Their rows are here when this returns.

        Args:
            tasks: The tasks.
            progress: Called with the name of the step and the number of replies that were added.
        """
        done = self.dealt.share_done(self._done)

        def added(row: Record) -> None:
            progress(f"{row['task']}, {row['condition']}", 1)

        self.dealt.take({RECORDS: self.records, MEASURES: self.measures}, added)
        for task in tasks:
            self._part.ask(task, done, self.records, self.measures, progress)
        self.dealt.wait()
        self._done = {(row["task"], row["condition"], row["seed"], row["id"]) for row in self.records.rows}

    def complete_conditions(self, task: PreparedTask) -> list[str]:
        """The conditions under which all questions of a task have a record."""
        jobs = self.jobs(task)
        recorded = [row["condition"] for row in self.records.rows if row["task"] == task.name]
        return [
            name
            for name in dict.fromkeys([*CONDITIONS, *recorded])
            if all((task.name, name, job.seed, job.question.id) in self._done for job in jobs)
        ]

    def rows(self, task: PreparedTask, conditions: Sequence[str]) -> list[Record]:
        """The records of a task under some conditions, in the order of its questions."""
        order = {(job.seed, job.question.id): place for place, job in enumerate(self.jobs(task))}
        rows = [row for row in self.records.rows if row["task"] == task.name and row["condition"] in conditions]
        asked = [row for row in rows if (row["seed"], row["id"]) in order]
        return sorted(asked, key=lambda row: order[row["seed"], row["id"]])

    def measures_of(self, task: PreparedTask, condition: str) -> list[MeasuresRow]:
        """The measures of a task's questions under a condition, one row for each batch.

        A batch may have further questions, of a run with a higher limit.
        """
        asked = {f"{job.seed}/{job.question.id}" for job in self.jobs(task)}
        counted: set[str] = set()
        found: list[MeasuresRow] = []
        # A batch that a limit cut short is asked again as a whole after the limit is raised. The later row counts.
        for row in reversed(self.measures.rows):
            ids = set(row["questions"])
            if (row["task"], row["condition"]) == (task.name, condition) and ids & asked and not ids <= counted:
                counted |= ids
                found.append(row)
        return found


class PartOfRun:
    """The questions of a run that one rank asks.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        plan: What to ask.
        dealt: The part of this rank.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, plan: Plan, dealt: Dealt):
        self._model = model
        self._tokenizer = tokenizer
        self._plan = plan
        self._dealt = dealt

    def jobs(self, task: PreparedTask) -> list[Job]:
        """The questions of a task under each condition, one job for each seed."""
        seeds = self._plan.seeds if task.manner.sampling.temp else self._plan.seeds[:1]
        return [Job(question, seed) for question in task.questions for seed in seeds]

    def ask(self, task: PreparedTask, done: set[Key], records: Rows, measures: Rows, progress: Counted) -> None:
        """Ask this rank's part of a task's questions under all conditions.

        Args:
            task: The task.
            done: The keys of the questions that have a record.
            records, measures: The places for the rows.
            progress: Called with the name of the step and the number of replies that were added.
        """
        histories = {question.group: question for question in task.questions}
        asker = Asker(self._model, self._tokenizer, task.manner, histories, self.partners(task))
        for condition in self._plan.conditions:
            step = f"{task.name}, {condition.name}"
            most = asker.most_at_once(condition, self._plan.batch_size)
            # A continued run forms the same batches, so that its replies have the same rounding.
            batches = list(_batches(self.jobs(task), condition, most))
            open_batches = [batch for batch in batches if not done.issuperset(_keys(task, condition, batch))]
            progress(step, sum(map(len, batches)) - sum(map(len, open_batches)))
            for batch in self._dealt.part(open_batches):
                progress(step, 0)
                rows, measured = self._ask_batch(task, asker, batch, condition, done)
                self._dealt.add(records, rows)
                done.update(_keys(task, condition, batch))
                self._dealt.add(measures, [measured])
                progress(step, len(batch))

    def _ask_batch(
        self, task: PreparedTask, asker: Asker, batch: Sequence[Job], condition: Condition, done: set[Key]
    ) -> tuple[list[Record], MeasuresRow]:
        """Ask a batch; returns the records of the questions that have none yet, and the measures."""
        replies, measures = asker.ask(batch, condition)
        rows = [
            _record(
                task,
                condition,
                batch[index],
                replies[index],
                asker.partners,
                asker.evidence(batch[index].question, condition),
            )
            for index, key in enumerate(_keys(task, condition, batch))
            if key not in done
        ]
        return rows, _measures_row(task, condition, batch, measures)

    def partners(self, task: PreparedTask) -> dict[str, str]:
        """For each group of a task, the group that lends its memory under `shuffled`; see `partner_groups`."""
        groups = list(dict.fromkeys(question.group for question in task.questions))
        shuffled = any(condition.memory is Memory.OTHER for condition in self._plan.conditions)
        # `check` needs them for the records of an earlier run even if `shuffled` is not asked.
        return partner_groups(groups, self._plan.seed) if shuffled or len(groups) > 1 else {}


def _keys(task: PreparedTask, condition: Condition, batch: Sequence[Job]) -> list[Key]:
    return [(task.name, condition.name, job.seed, job.question.id) for job in batch]


def _measures_row(task: PreparedTask, condition: Condition, batch: Sequence[Job], measures: Measures) -> MeasuresRow:
    ids = [f"{job.seed}/{job.question.id}" for job in batch]
    row = {"task": task.name, "condition": condition.name, "questions": ids, **asdict(measures)}
    return cast(MeasuresRow, row)


def _record(
    task: PreparedTask,
    condition: Condition,
    job: Job,
    reply: GeneratedReply,
    partners: Mapping[str, str],
    evidence: float | None,
) -> Record:
    question = job.question
    return {
        "task": task.name,
        "condition": condition.name,
        "seed": job.seed,
        "id": question.id,
        "group": question.group,
        "category": question.category,
        "labels": dict(question.labels),
        "asked": task.digests[question.id],
        "memory_of": partners[question.group] if condition.memory is Memory.OTHER else None,
        "question": question.question,
        "golds": list(question.golds),
        "reply": reply.text,
        "tokens": reply.tokens,
        "ending": reply.ending,
        "evidence": evidence,
        "scores": dict(task.task.score(question, reply.text)),
    }


def _batches(jobs: Sequence[Job], condition: Condition, most: int) -> Iterator[list[Job]]:
    """Group jobs into batches, limited by their number and by the characters of their prompts."""
    batch: list[Job] = []
    characters = 0
    for job in jobs:
        size = sum(len(message["content"]) for message in job.question.messages(condition.text))
        if batch and (len(batch) == most or characters + size > _MOST_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(job)
        characters += size
    if batch:
        yield batch
