"""Small questions, and stand-ins for a model, for tests of the evaluation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone, Task


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
    """A task of such questions; right is a reply that has an e in it, for want of sense in tiny models' replies."""

    name = "small"
    title = "A small task"
    breakdowns = ("kind",)
    curves = ("level",)

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        yield from questions()

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        return {"right": float("e" in reply), "length": min(len(reply) / 10, 1.0)}
