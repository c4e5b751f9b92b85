"""The benchmark of free speech and the generator of training data have no wording in common."""

import re
from collections.abc import Iterable, Iterator

import pytest

from mlx_deltamem.evaluation.tasks.natural import natural_prompts, natural_questions
from mlx_deltamem.speech.ordinary import ordinary_messages
from mlx_deltamem.speech.relations import relations
from mlx_deltamem.speech.scenes import scenes
from mlx_deltamem.speech.split import SIDES
from mlx_deltamem.speech.talk import SHORT, talk

# A wording with fewer words may be common by chance.
FEWEST_WORDS = 4
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
USES = ("tell", "ask", "update", "wish", "all", "back", "pair")


def words(text: str) -> list[str]:
    return re.findall(r"[\w{}]+(?:'\w+)?", text.lower())


def said() -> set[str]:
    """The user's messages of the benchmark, whole and as single sentences."""

    def typed() -> Iterator[str]:
        for question in natural_questions(()):
            yield from (message["content"] for message in question.history if message["role"] == "user")
            yield question.question

    return {" ".join(words(part)) for message in typed() for part in (message, *SENTENCE_END.split(message))}


def same(template: str, sentences: Iterable[str]) -> list[str]:
    """A pattern of the sentences that a wording with slots can make."""
    own = words(template)
    if sum("{" not in word for word in own) < FEWEST_WORDS:
        return []
    pattern = re.compile(" ".join(r"[\w' ]+" if "{" in word else re.escape(word) for word in own))
    return [each for each in sentences if pattern.fullmatch(each)]


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_the_benchmark_has_no_wording_of_the_generator(use):
    sentences = said()
    assert len(sentences) > 700
    found = [
        (relation.name, template, each)
        for relation in relations()
        for template in relation.texts.get(use, ())
        for each in same(template, sentences)
    ]
    assert not found


@pytest.mark.slow
def test_the_benchmark_has_no_wording_of_a_scene():
    sentences = said()
    found = [
        (scene.name, template, each)
        for scene in scenes()
        for told in (*(each.tell for each in scene.messages), *(each.wish for each in scene.messages))
        for lines in (told, *scene.ask.values(), *scene.later.values(), scene.never)
        for template in lines
        for each in same(template, sentences)
    ]
    assert not found


def test_the_benchmark_has_no_short_message_of_the_generator():
    sentences = said()
    lines = [line for use in SHORT for side in SIDES for line in talk(use, side)]
    assert len(lines) > 90
    assert not [(line, each) for line in lines for each in same(line, sentences)]


def test_a_common_wording_would_be_found():
    sentences = [" ".join(words("I've parked the van near the old mill, today!"))]
    assert same("i've parked {it} near {value} today", sentences) == sentences
    assert not same("i've parked {it} behind {value} today", sentences)


def test_no_everyday_prompt_is_an_ordinary_message():
    ordinary = {" ".join(words(message)) for message in ordinary_messages()}
    assert len(ordinary) > 2_000
    assert not {" ".join(words(prompt)) for prompt in natural_prompts()} & ordinary
