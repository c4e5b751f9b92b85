"""Ask every question under every condition, and keep what came of it as it comes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.evaluation.asking import Asker, Job, Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS, Condition, Memory, others
from mlx_deltamem.evaluation.decoding import Reply
from mlx_deltamem.evaluation.prompts import Prompts
from mlx_deltamem.evaluation.question import Question, digests
from mlx_deltamem.evaluation.records import JsonLines, Row
from mlx_deltamem.evaluation.task import Backbone, Task
from mlx_deltamem.sessions.read import window
from mlx_deltamem.show.progress import Counted

RECORDS_FILE, MEASURES_FILE = "records.jsonl", "measures.jsonl"

# Characters of all prompts side by side: long ones go alone, since each has keys and values of its own.
_MOST_CHARACTERS = 60_000


@dataclass(frozen=True)
class Plan:
    """What is asked, beside the tasks.

    Attributes:
        conditions: Under which conditions.
        seeds: Of sampling; where the likeliest tokens are taken, only the first one counts.
        batch_size: At most so many questions side by side.
        seed: Decides which memory belongs to which question under `shuffled`.
    """

    conditions: tuple[Condition, ...]
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class TaskRun:
    """A task with its questions, ready to be asked.

    Attributes:
        task: The task.
        questions: Its questions.
        manner: How they are asked.
    """

    task: Task
    questions: tuple[Question, ...]
    manner: Manner

    @property
    def settings(self) -> Row:
        """What decides the records, beside the questions."""
        manner = asdict(self.manner)
        # They have no effect on the result.
        del manner["prefill_step_size"]
        return json.loads(json.dumps(manner))

    @property
    def summary(self) -> Row:
        """The settings, and which questions they are of: two runs that have the same give the same records."""
        digest = hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()
        return {"questions": len(self.questions), "sha256": digest, **self.settings}

    @cached_property
    def digests(self) -> dict[str, str]:
        """What every question is, by its id."""
        return digests(self.questions)


def prepare(task: Task, manner: Manner, model: nn.Module, tokenizer: TokenizerWrapper, limit: int | None) -> TaskRun:
    """Make a task's questions.

    Raises:
        ValueError: There are none, two have one id, or those of a group do not follow each other.
    """
    questions = tuple(islice(task.questions(Backbone(tokenizer, window(model))), limit))
    if not questions:
        raise ValueError(f"{task.name} has no questions; check its data and options")
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{task.name} has two questions of one id; expected ids that are unique")
    groups = [question.group for question in questions]
    changes = 1 + sum(one != other for one, other in pairwise(groups))
    if changes > len(set(groups)):
        raise ValueError(f"{task.name} has questions of one group apart from each other; expected them in a row")
    return TaskRun(task, questions, manner)


class Run:
    """A run, new or one that goes on.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        plan: What to ask.
        folder: Where the records are.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, plan: Plan, folder: Path):
        self._model = model
        self._tokenizer = tokenizer
        self._plan = plan
        self._folder = folder
        self.records = JsonLines(folder / RECORDS_FILE)
        self.measures = JsonLines(folder / MEASURES_FILE)
        self._done = {_key(row["task"], row["condition"], row["seed"], row["id"]) for row in self.records.rows}

    def jobs(self, run: TaskRun) -> list[Job]:
        """What is asked under each condition."""
        seeds = self._plan.seeds if run.manner.sampling.temp else self._plan.seeds[:1]
        return [Job(question, seed) for question in run.questions for seed in seeds]

    def amount(self, run: TaskRun) -> int:
        """How many times a question is asked in all."""
        return len(self.jobs(run)) * len(self._plan.conditions)

    def check(self, run: TaskRun) -> None:
        """Check, before anything is asked, that what was asked in the folder before is what is to be asked now.

        There may be more questions than before, or fewer.

        Raises:
            ValueError: It is not, there is no other history for `shuffled`, or the chat template refuses the first
                question's prompts.
        """
        partners = self._partners(run)
        prompts, first = Prompts(self._tokenizer, by_token=True), run.questions[0]
        for condition in self._plan.conditions:
            prompts.prompt(first, condition.text, writing=False)
            if condition.memory is not Memory.EMPTY:
                prompts.history(first)
        for row in self.records.rows:
            if row["task"] != run.task.name or row["id"] not in run.digests:
                continue
            memory = row.get("memory_of")
            same_memory = memory is None or memory == partners.get(row["group"], memory)
            if row.get("asked") != run.digests[row["id"]] or not same_memory:
                raise ValueError(
                    f"the run in {self._folder} had another {run.task.name} question {row['id']!r}; leave data and "
                    "options as they were, or name a new folder"
                )

    def ask(self, run: TaskRun, progress: Counted) -> None:
        """Ask a task's questions under all conditions; those that have a record already are not asked again.

        Args:
            run: The task.
            progress: Told what is going on, and how much more is done.
        """
        histories = {question.group: question for question in run.questions}
        asker = Asker(self._model, self._tokenizer, run.manner, histories, self._partners(run))
        for condition in self._plan.conditions:
            most = asker.most_at_once(condition, self._plan.batch_size)
            # What is side by side is the same in a run that goes on, so that its rounding is.
            for batch in _batches(self.jobs(run), condition, most):
                progress(f"{run.task.name}, {condition.name}", 0)
                self._ask_batch(run, asker, batch, condition)
                progress(f"{run.task.name}, {condition.name}", len(batch))

    def complete_conditions(self, run: TaskRun) -> list[str]:
        """The conditions under which all of a task's questions have been asked, in this run or an earlier one."""
        jobs = self.jobs(run)
        recorded = [row["condition"] for row in self.records.rows if row["task"] == run.task.name]
        return [
            name
            for name in dict.fromkeys([*CONDITIONS, *recorded])
            if all(_key(run.task.name, name, job.seed, job.question.id) in self._done for job in jobs)
        ]

    def rows(self, run: TaskRun, conditions: Sequence[str]) -> list[Row]:
        """The records of a task under some conditions, in the order of its questions."""
        order = {(job.seed, job.question.id): place for place, job in enumerate(self.jobs(run))}
        rows = [row for row in self.records.rows if row["task"] == run.task.name and row["condition"] in conditions]
        asked = [row for row in rows if (row["seed"], row["id"]) in order]
        return sorted(asked, key=lambda row: order[row["seed"], row["id"]])

    def measures_of(self, run: TaskRun, condition: str) -> list[Row]:
        """What was measured while a task's questions were asked under a condition, once for each batch of them."""
        asked, counted, found = {f"{job.seed}/{job.question.id}" for job in self.jobs(run)}, set(), []
        # A batch that was cut by a limit is asked again as a whole where the limit is raised: the later one counts.
        for row in reversed(self.measures.rows):
            ids = set(row["questions"])
            if (row["task"], row["condition"]) == (run.task.name, condition) and ids <= asked and not ids <= counted:
                counted |= ids
                found.append(row)
        return found

    def _partners(self, run: TaskRun) -> dict[str, str]:
        """For each group of a task's questions the one whose memory it gets under `shuffled`; see `others`."""
        groups = list(dict.fromkeys(question.group for question in run.questions))
        shuffled = any(condition.memory is Memory.OTHER for condition in self._plan.conditions)
        # Also without it: records of an earlier run may be compared with them.
        return others(groups, self._plan.seed) if shuffled or len(groups) > 1 else {}

    def _ask_batch(self, run: TaskRun, asker: Asker, batch: Sequence[Job], condition: Condition) -> None:
        keys = [_key(run.task.name, condition.name, job.seed, job.question.id) for job in batch]
        missing = [index for index, key in enumerate(keys) if key not in self._done]
        if not missing:
            return
        replies, measures = asker.ask(batch, condition)
        self.records.add(_record(run, condition, batch[index], replies[index], asker.partners) for index in missing)
        self._done.update(keys)
        ids = [f"{job.seed}/{job.question.id}" for job in batch]
        self.measures.add([{"task": run.task.name, "condition": condition.name, "questions": ids, **asdict(measures)}])


def _key(*parts: object) -> tuple[object, ...]:
    return parts


def _record(run: TaskRun, condition: Condition, job: Job, reply: Reply, partners: Mapping[str, str]) -> Row:
    question = job.question
    return {
        "task": run.task.name,
        "condition": condition.name,
        "seed": job.seed,
        "id": question.id,
        "group": question.group,
        "category": question.category,
        "labels": dict(question.labels),
        "asked": run.digests[question.id],
        "memory_of": partners[question.group] if condition.memory is Memory.OTHER else None,
        "question": question.question,
        "golds": list(question.golds),
        "reply": reply.text,
        "tokens": reply.tokens,
        "ending": reply.ending,
        "scores": dict(run.task.score(question, reply.text)),
    }


def _batches(jobs: Sequence[Job], condition: Condition, most: int) -> Iterator[list[Job]]:
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
