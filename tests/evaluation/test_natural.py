"""The form of the hand-written questions in `mlx_deltamem/evaluation/tasks/natural.yaml`, and their scores."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.evaluation.tasks.recall import Recall
from tests.conftest import backbone

TOKENIZER = load_tokenizer(Path(backbone()))

FILE = Path(__file__).parents[2] / "mlx_deltamem" / "evaluation" / "tasks" / "natural.yaml"
LEAST = {
    "fact": 150,
    "update": 35,
    "shift": 35,
    "absent": 35,
    "assistant": 12,
    "two": 20,
    "four": 15,
    "sibling": 20,
}
# The least and the most messages of an item of each kind.
MESSAGES = {
    "fact": (1, 1),
    "update": (2, 4),
    "shift": (4, 7),
    "absent": (1, 2),
    "assistant": (2, 2),
    "two": (1, 2),
    "four": (4, 4),
    "sibling": (1, 3),
}
FIELDS = {"id", "kind", "told", "ask", "answers", "rivals"}


def stands_in(value: str, text: str) -> bool:
    """Whether `value` is found in `text` as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def words_of(message: str | dict[str, str]) -> str:
    return message if isinstance(message, str) else message["assistant"]


NATURAL = yaml.safe_load(FILE.read_text(encoding="utf-8"))
ITEMS = NATURAL["items"]


def told_in(item: dict) -> str:
    return "\n".join(words_of(message) for message in item["told"])


def failing(holds) -> list[str]:
    """The ids of the items of which `holds` is not true."""
    return [item["id"] for item in ITEMS if not holds(item)]


def repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(texts).items() if count > 1]


def test_top_level():
    assert set(NATURAL) == {"items", "prompts", "prose"}


def test_counts_by_kind():
    counts = Counter(item["kind"] for item in ITEMS)
    assert set(counts) == set(LEAST)
    assert {kind: counts[kind] for kind in LEAST if counts[kind] < LEAST[kind]} == {}
    assert len(ITEMS) >= 320


def test_fields():
    assert failing(lambda item: set(item) == FIELDS) == []
    assert failing(lambda item: isinstance(item["told"], list) and isinstance(item["ask"], str)) == []


def test_ids_are_unique_and_name_the_kind():
    assert repeated([item["id"] for item in ITEMS]) == []
    assert failing(lambda item: re.fullmatch(rf"{item['kind']}-\d{{3}}", item["id"])) == []


@pytest.mark.parametrize("field", ["answers", "rivals"])
def test_values_are_strings_each_written_once(field):
    # A code such as 0926 that is written without quotes would be read as a number.
    assert failing(lambda item: all(isinstance(value, str) and value.strip() for value in item[field])) == []
    assert failing(lambda item: len(item[field]) == len(set(item[field]))) == []


def test_nothing_is_typed_twice():
    told = [words_of(message) for item in ITEMS for message in item["told"]]
    asked = [item["ask"] for item in ITEMS]
    assert repeated([text.lower() for text in told + asked + NATURAL["prompts"]]) == []


def test_told_messages_are_short_and_not_empty():
    assert failing(lambda item: item["told"]) == []
    assert failing(lambda item: all(1 <= len(words_of(message).split()) <= 40 for message in item["told"])) == []


def test_the_assistant_speaks_where_the_kind_says_so():
    assert failing(lambda item: isinstance(item["told"][0], str)) == []

    def replies(item):
        return [message for message in item["told"] if not isinstance(message, str)]

    assert failing(lambda item: bool(replies(item)) == (item["kind"] == "assistant")) == []
    assert failing(lambda item: all(set(reply) == {"assistant"} for reply in replies(item))) == []


def test_number_of_messages():
    def fits(item):
        least, most = MESSAGES[item["kind"]]
        return least <= len(item["told"]) <= most

    assert failing(fits) == []


def test_questions_are_short_and_name_no_value():
    assert failing(lambda item: 1 <= len(item["ask"].split()) <= 20) == []
    assert failing(lambda item: not any(stands_in(v, item["ask"]) for v in item["answers"] + item["rivals"])) == []


def test_only_what_was_told_has_answers():
    assert failing(lambda item: bool(item["answers"]) == (item["kind"] != "absent")) == []
    told = [item for item in ITEMS if item["kind"] != "absent"]
    assert [i["id"] for i in told if not any(stands_in(value, told_in(i)) for value in i["answers"])] == []


def test_the_fact_of_a_shift_is_told_in_its_first_message_only():
    shifts = [item for item in ITEMS if item["kind"] == "shift"]
    assert [i["id"] for i in shifts if not any(stands_in(value, i["told"][0]) for value in i["answers"])] == []
    later = [(i["id"], value) for i in shifts for m in i["told"][1:] for value in i["answers"] if stands_in(value, m)]
    assert later == []


def test_rivals():
    assert failing(lambda item: item["rivals"] or item["kind"] not in ("update", "absent", "sibling")) == []
    assert failing(lambda item: not item["rivals"] or any(stands_in(v, told_in(item)) for v in item["rivals"])) == []
    # A rival inside an accepted answer would make the right reply wrong.
    pairs = [(item["id"], answer, rival) for item in ITEMS for answer in item["answers"] for rival in item["rivals"]]
    assert [pair for pair in pairs if stands_in(pair[2], pair[1]) or stands_in(pair[1], pair[2])] == []


def test_prompts():
    assert len(NATURAL["prompts"]) == 20
    assert all(prompt.strip() for prompt in NATURAL["prompts"])


def test_prose():
    assert len(NATURAL["prose"]) == 12
    assert [len(text.split()) for text in NATURAL["prose"] if not 80 <= len(text.split()) <= 150] == []


def test_the_task_asks_every_item_and_scores_what_it_accepts():
    task = Recall(natural=True, system_prompt="Be brief.")
    questions = list(task.questions(Backbone(TOKENIZER, None)))
    assert sorted(question.id for question in questions) == sorted(item["id"] for item in ITEMS)
    assert {question.category for question in questions[:8]} == {item["kind"] for item in ITEMS}
    for question in questions:
        assert question.history[0] == {"role": "system", "content": "Be brief."}
        assert [message["role"] for message in question.history[1::2]] == ["user"] * (len(question.history) // 2)
        for gold in question.golds:
            assert task.score(question, gold)["exact"] == 1, (question.id, gold)
            assert task.score(question, f"Sure!\n\nThat would be {gold}")["exact"] == 1, (question.id, gold)
        assert task.score(question, "")["exact"] == 0
        assert task.score(question, "I do not know.")["exact"] == (question.category == "absent")
        for rival in filter(None, question.labels["rivals"].split("\n")):
            assert task.score(question, f"{question.golds[0]}, or {rival}")["exact"] == 0, (question.id, rival)


def test_replies_of_the_assistant_are_told_word_for_word():
    for question in Recall(natural=True).questions(Backbone(TOKENIZER, None)):
        assert bool(question.given_replies) == (question.category == "assistant")
        for place in question.given_replies:
            assert question.history[place]["role"] == "assistant"
            assert question.history[place]["content"] != "Okay."
