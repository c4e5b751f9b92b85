"""Small questions, a small task, and ways to ask them, for tests of the evaluation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mlx_deltamem import load
from mlx_deltamem.evaluation.asking import Asker, Job, Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS
from mlx_deltamem.evaluation.partners import partner_groups
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone, Task
from tests.conftest import adapter, backbone


def chat(*contents: str) -> tuple[dict[str, str], ...]:
    """Messages of the user and the assistant in turn."""
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents))


FACTS = ("My dog is called Rex.", "I live in Oslo, by the sea.", "My lucky number is 17.", "I play the violin.")


def questions(groups: int = 3, each: int = 2, in_prompt: bool = False, max_tokens: int = 7) -> list[Question]:
    """Questions about histories of different lengths; `in_prompt` puts the history into the user's message."""
    made = []
    for group in range(groups):
        told = FACTS[group % len(FACTS)]
        history = chat(told, "Noted.", *("And now something else.", "Yes?") * group)
        system = ({"role": "system", "content": "Be brief."},)
        for number in range(each):
            asked = ("What was it?", "Tell me again what I said at first!", "So?")[number % 3]
            question = Question(
                id=f"{group}/{number}",
                group=f"group {group}",
                history=(*system, *history),
                question=asked,
                golds=(told,),
                category=("one", "two")[number % 2],
                max_tokens=max_tokens,
                labels={"level": group, "kind": f"kind {number % 2}"},
                index=len(made),
            )
            if in_prompt:
                question = replace(question, context=f"Read this.\n\n{told}\n\n", question_with_context=f"Now: {asked}")
            made.append(question)
    return made


@dataclass(frozen=True)
class Small(Task):
    """A task of small questions. A reply with an e in it is right, because replies of tiny models make no sense."""

    name = "small"
    title = "A small task"
    breakdowns = ("kind",)
    curves = ("level",)

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        yield from questions()

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        return {"right": float("e" in reply), "length": min(len(reply) / 10, 1.0)}


_LOADED: dict[str, tuple] = {}


def loaded(name: str = "qwen3_tsw_qo") -> tuple:
    if name not in _LOADED:
        _LOADED[name] = load(backbone(), adapter=adapter(name))
    return _LOADED[name]


def asker(asked: list[Question], name: str = "qwen3_tsw_qo", manner: Manner | None = None) -> Asker:
    model, tokenizer = loaded(name)
    groups = list(dict.fromkeys(question.group for question in asked))
    partners = partner_groups(groups, 0) if len(groups) > 1 else {}
    return Asker(model, tokenizer, manner or Manner(), {each.group: each for each in asked}, partners)


def replies(asked: list[Question], condition: str, name: str = "qwen3_tsw_qo", batch: int = 1, **manner) -> list[str]:
    one = asker(asked, name, Manner(**manner))
    jobs = [Job(question, 5) for question in asked]
    parts = [one.ask(jobs[at : at + batch], CONDITIONS[condition])[0] for at in range(0, len(jobs), batch)]
    return [reply.text for part in parts for reply in part]
