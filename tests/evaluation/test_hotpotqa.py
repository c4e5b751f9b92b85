import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.evaluation.tasks import hotpotqa
from mlx_deltamem.evaluation.tasks.hotpotqa import HotpotQA, official
from tests.evaluation.tables import asked, check_questions, exactly, oracle_and_mute, table


def row(name="5a8b", answer="Animorphs", **changed):
    """A row of the schema of the data set on the Hub."""
    return {
        "id": name,
        "question": "What series is it?",
        "answer": answer,
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["Andre Norton"], "sent_id": [0]},
        "context": {
            "title": ["Andre Norton", "Nothing", "The Hork-Bajir Chronicles"],
            "sentences": [["She wrote books.", " Many of them. "], [" "], ["It is a companion book."]],
        },
    } | changed


@pytest.fixture
def hotpot(tmp_path):
    def make(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return HotpotQA(data=path)

    return make


@pytest.mark.parametrize("index", range(len(table("hotpotqa"))))
def test_scores_are_those_of_the_rules(hotpot, index):
    pair = table("hotpotqa")[index]
    task = hotpot(row(answer=pair["gold"]))
    scores = {name: pytest.approx(exactly(share)) for name, share in pair["score"].items()}
    assert task.score(asked(task)[0], pair["reply"]) == scores, pair["why"]


def test_the_table_is_long_enough_and_the_rules_differ_in_it():
    rows = table("hotpotqa")
    assert len(rows) >= 60
    assert sum(row["score"]["em"] != row["score"]["official_em"] for row in rows) > 5
    assert sum(row["score"]["f1"] != row["score"]["official_f1"] for row in rows) > 5


def test_the_prompt_has_numbered_and_titled_passages(hotpot):
    task = hotpot(row())
    (question,) = asked(task)
    assert question.messages(with_history=True) == [
        {
            "role": "user",
            "content": "Answer the question using only the passages below.\nReply with a short span or yes/no only.\n\n"
            "Passage 1 - Andre Norton:\nShe wrote books. Many of them.\n\n"
            "Passage 3 - The Hork-Bajir Chronicles:\nIt is a companion book.\n\n"
            "Question: What series is it?\nAnswer:",
        }
    ]
    assert question.history == (
        {"role": "user", "content": "Passage 1 - Andre Norton:\nShe wrote books. Many of them."},
        {"role": "user", "content": "Passage 3 - The Hork-Bajir Chronicles:\nIt is a companion book."},
    )
    (alone,) = question.messages(with_history=False)
    assert "companion" not in alone["content"] and alone["content"].endswith("Question: What series is it?\nAnswer:")
    assert (question.max_tokens, question.category, question.labels) == (32, "bridge", {"level": "hard"})
    assert task.sampling.temp == 0 and task.breakdowns == ("level",)


def test_the_original_file_gives_the_same_questions(hotpot, tmp_path):
    original = row()
    original["_id"] = original.pop("id")
    original["context"] = [list(pair) for pair in zip(*row()["context"].values(), strict=True)]
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps([original]))
    assert asked(HotpotQA(data=path)) == asked(hotpot(row()))


def test_an_oracle_has_all_points_and_a_mute_none(hotpot):
    answers = ["yes", "no", "Animorphs", "1,000", "U.S.", "the film (1999)", "A", "—", "Arthur’s Magazine"]
    task = hotpot(*(row(str(index), answer) for index, answer in enumerate(answers)))
    oracle_and_mute(task, asked(task))
    check_questions(asked(task))
    assert [question.index for question in asked(task)] == list(range(len(answers)))


@given(st.text(), st.text())
def test_the_official_scores_are_the_same_from_both_sides(one, other):
    assert official(one, other) == pytest.approx(official(other, one))
    assert official(one, one) == (1.0, 1.0) and all(0 <= score <= 1 for score in official(one, other))


def test_without_data_it_is_the_validation_split_on_the_hub(monkeypatch):
    loaded = []

    def hub_rows(*names):
        loaded.append(names)
        yield "row 1", row()

    monkeypatch.setattr(hotpotqa, "hub_rows", hub_rows)
    assert len(asked(HotpotQA())) == 1 and loaded == [
        ("hotpotqa/hotpot_qa", "validation", "distractor/validation-*.parquet")
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": None}, "rows.jsonl row 1 has no text `answer`"),
        ({"answer": " "}, "no text `answer`"),
        ({"id": 3}, "no text `id`"),
        ({"context": None}, "no `context` of titles and sentences"),
        ({"context": {"title": ["a"], "sentences": []}}, "no `context` of titles and sentences"),
        ({"context": [["a", [1]]]}, "no `context` of titles and sentences"),
    ],
)
def test_damaged_rows_are_told_in_one_line(hotpot, changed, message):
    with pytest.raises(ValueError, match=message) as told:
        asked(hotpot(row(**changed)))
    assert "\n" not in str(told.value)


def test_a_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; expected a file that ends with one of \.jsonl"):
        asked(HotpotQA(data=tmp_path))
