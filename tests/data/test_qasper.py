import json
from copy import deepcopy
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.data import qasper
from mlx_deltamem.data.episode_files import BAD, Found, check
from mlx_deltamem.data.qasper import chunks, episodes
from mlx_deltamem.data.qasper_papers import Paragraph, entries
from tests.data.test_chat_logs import json_values, rows
from tests.tool_runs import records_of, runner


def answer(unanswerable=False, spans=(), yes_no=None, free=""):
    return {
        "answer": {
            "unanswerable": unanswerable,
            "extractive_spans": list(spans),
            "yes_no": yes_no,
            "free_form_answer": free,
            "evidence": [],
            "highlighted_evidence": [],
        },
        "annotation_id": "a",
        "worker_id": "w",
    }


def question(name, *answers):
    return {"question": f"What about {name}?", "question_id": name, "nlp_background": "two", "answers": list(answers)}


PAPER = {
    "title": "Whales",
    "abstract": "We count whales.",
    "full_text": [
        {"section_name": "Introduction", "paragraphs": ["Whales sing near Tromso.", "", "We listened for 300 hours."]},
        {"section_name": "Method ::: Layers", "paragraphs": ["There are 12 layers."]},
        {"section_name": None, "paragraphs": ["Thanks."]},
    ],
    "qas": [
        question("spans", answer(spans=["300 hours", "12 layers"], free="other"), answer(free="other")),
        question("free", answer(free="By listening.")),
        question("yes", answer(yes_no=True)),
        question("no", answer(yes_no=False)),
        question("nothing", answer(unanswerable=True), answer(yes_no=True)),
        question("second", answer(), answer(yes_no=True)),
    ],
    "figures_and_tables": [{"file": "1-Table1-1.png", "caption": "Table 1: Songs."}],
}
ANSWERS = ["300 hours, 12 layers", "By listening.", "Yes", "No", "Unanswerable", "Yes"]
WHOLE = (
    "Whales\n\nAbstract\n\nWe count whales.\n\nIntroduction\n\nWhales sing near Tromso.\n\nWe listened for 300 hours."
    "\n\nMethod: Layers\n\nThere are 12 layers.\n\nThanks.\n\nFigures and tables\n\nTable 1: Songs."
)


def columns(items):
    return {name: [item.get(name) for item in items] for name in items[0]}


def row(paper, name):
    """A paper in the Hugging Face form, with objects of lists instead of lists of objects."""
    found = {"id": name, **deepcopy(paper)}
    for asked in found["qas"]:
        asked["answers"] = columns(asked["answers"])
    return found | {name: columns(found[name]) for name in ("full_text", "qas", "figures_and_tables")}


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    """A function that converts a file: how the command ended, and the messages of each record or None."""
    run = runner(qasper, monkeypatch, capsys)

    def of(text, *options):
        file, output = tmp_path / "qasper.json", tmp_path / "train.jsonl"
        output.unlink(missing_ok=True)
        file.write_text(text if isinstance(text, str) else json.dumps(text))
        ended = run(file, output, *options)
        return ended, [record["messages"] for record in records_of(output)] if output.exists() else None

    return of


def test_each_question_about_a_paper_is_a_record(convert):
    ended, records = convert({"1909.00694": PAPER})
    assert ended.code == 0
    assert [messages[-1] for messages in records] == [{"role": "assistant", "content": text} for text in ANSWERS]
    assert [messages[-2]["content"] for messages in records] == [asked["question"] for asked in PAPER["qas"]]
    for messages in records:
        assert messages[:-2] == [{"role": "user", "content": WHOLE}, {"role": "assistant", "content": "Noted."}]


def test_a_paper_is_cut_at_paragraphs(convert):
    messages = convert({"1909.00694": PAPER}, "--chunk-words", 9)[1][0]
    assert [message["content"] for message in messages[:-2:2]] == [
        "Whales\n\nAbstract\n\nWe count whales.\n\nIntroduction\n\nWhales sing near Tromso.",
        "Introduction\n\nWe listened for 300 hours.\n\nMethod: Layers\n\nThere are 12 layers.",
        "Thanks.\n\nFigures and tables\n\nTable 1: Songs.",
    ]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 4


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=20), st.integers(1, 20))
def test_no_paragraph_is_lost_or_cut(told, words):
    paragraphs = [Paragraph(section, f"{number} " * count) for number, (section, count) in enumerate(told)]
    cut = list(chunks(paragraphs, words))
    blocks = [block for chunk in cut for block in chunk.split("\n\n") if block not in ("a", "b")]
    assert blocks == [paragraph.text for paragraph in paragraphs]
    sizes = [[len(block.split()) for block in chunk.split("\n\n") if block not in ("a", "b")] for chunk in cut]
    assert all(sum(size) <= words or len(size) == 1 for size in sizes)
    # There are as few chunks as possible.
    assert all(sum(size) + after[0] > words for size, after in pairwise(sizes))


def test_rows_are_read_as_the_public_form(convert):
    public = convert({"1": PAPER, "2": PAPER})[1]
    rows_of_papers = [row(PAPER, "1"), row(PAPER, "2")]
    assert public == convert("".join(f"{json.dumps(item)}\n" for item in rows_of_papers))[1]
    assert public == convert(rows_of_papers)[1]
    assert public == convert(json.dumps({"1": PAPER, "2": PAPER}, indent=1))[1]


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_what_is_null_is_absent(convert, absent):
    more = {"license": absent, "unanswerable": absent, "section_name": absent}
    table = {**deepcopy(PAPER), **more}
    for asked in table["qas"]:
        for each in asked["answers"]:
            empty = [name for name, value in each["answer"].items() if value in (None, "", [])]
            each["answer"] |= dict.fromkeys(empty, absent)
            if not each["answer"]["unanswerable"]:
                each["answer"]["unanswerable"] = absent
        asked["answers"].insert(0, {"answer": absent, "annotation_id": absent})
    table["full_text"][0]["paragraphs"].append(absent)
    table["qas"].append(absent)
    expected = convert({"1": PAPER})[1]
    assert len(expected) == 6
    assert convert({"1": table, "2": absent})[1] == expected
    whole = row(PAPER, "1")
    whole["full_text"]["pages"] = absent
    assert convert([whole | {"license": absent}])[1] == expected


def test_unanswerable_questions_can_be_left_out(convert):
    ended, records = convert({"1909.00694": PAPER}, "--answerable-only")
    assert len(records) == 5
    assert rows(ended)["left out, unanswerable questions"] == ("1", "paper '1909.00694', question 'nothing'")


def test_unusable_papers_are_counted(convert):
    empty = {
        "title": "",
        "abstract": None,
        "full_text": [{"section_name": "A", "paragraphs": [" "]}],
        "qas": PAPER["qas"],
    }
    ended, records = convert({"good": PAPER, "empty": empty, "unasked": PAPER | {"qas": []}})
    assert (ended.code, len(records)) == (0, 6)
    assert rows(ended)["left out, empty: a message without text"] == ("1", "paper 'empty'")
    assert rows(ended)["left out, a paper without questions"] == ("1", "paper 'unasked'")
    ended, records = convert({"good": PAPER, "long": PAPER | {"abstract": "word " * 100}}, "--max-words", 60)
    assert len(records) == 6
    assert rows(ended)["left out, too long"][0] == "6"


BAD_PAPERS = {
    "not an object with a paper": [1],
    "its title is not a text": PAPER | {"title": 3},
    "its full_text is not a list of objects": PAPER | {"full_text": ["text"]},
    "its full_text is not an object of lists": PAPER | {"full_text": {"section_name": ["a"], "paragraphs": []}},
    "its qas is not an object of lists": PAPER | {"qas": {"question": "x"}},
    "its paragraphs is not a list of texts": PAPER | {"full_text": [{"section_name": "a", "paragraphs": "text"}]},
    "its caption is not a text": PAPER | {"figures_and_tables": [{"caption": {}}]},
    "its abstract has half a character (a lone surrogate": PAPER | {"abstract": "\ud800"},
    "its paragraphs has a NUL character (U+0000 at": PAPER | {"full_text": [{"paragraphs": ["a", "b\x00"]}]},
    "its qas is not a list of objects": PAPER | {"qas": [3]},
}


@pytest.mark.parametrize("problem", BAD_PAPERS)
def test_a_bad_paper_stops_or_is_skipped(convert, problem):
    papers = {"good": PAPER, "bad": BAD_PAPERS[problem]}
    ended, records = convert(papers)
    assert (ended.code, records) == (2, None)
    assert ended.errors.startswith("error: paper 'bad': ") and problem in ended.errors
    ended, records = convert(papers, "--on-error", "skip")
    assert (ended.code, len(records)) == (0, 6)
    assert ended.errors.startswith("paper 'bad': ") and problem in ended.errors
    assert rows(ended)["left out, bad records"] == ("1", "paper 'bad'")


BAD_QUESTIONS = {
    "it has no answer": question("q", answer()),
    "an answer is not an object": question("q", {"answer": "Yes"}),
    "its answers is not a list of objects": question("q", "Yes"),
    "its question is not a text": question("q", answer(yes_no=True)) | {"question": 1},
    "its extractive_spans is not a list of texts": question("q", {"answer": {"extractive_spans": "x"}}),
    "its free_form_answer is not a text": question("q", {"answer": {"free_form_answer": 1}}),
    "its yes_no is a number, expected true or false": question("q", answer(yes_no=3)),
    "its yes_no is a text, expected true or false": question("q", answer(yes_no="None")),
    "its unanswerable is a text, expected true or false": question("q", answer("False", free="x")),
}


@pytest.mark.parametrize("problem", BAD_QUESTIONS)
def test_a_bad_question_leaves_the_others(convert, problem):
    paper = PAPER | {"qas": [*PAPER["qas"], BAD_QUESTIONS[problem]]}
    ended, records = convert({"1": paper}, "--on-error", "skip")
    assert (ended.code, len(records)) == (0, 6)
    assert ended.errors == f"paper '1', question 'q': {problem}; left out\n"
    assert f"paper '1', question 'q': {problem}" in convert({"1": paper})[0].errors


def test_a_bad_line_of_rows_has_its_number(convert):
    ended, records = convert(f"{json.dumps(row(PAPER, '1'))}\nnope\n", "--on-error", "skip")
    assert len(records) == 6
    assert ended.errors.startswith("line 2: not JSON")


def test_names_of_papers_are_shown_on_one_line(convert):
    ended, _ = convert({"a\n\x1b[31m[/b]": 1, "good": PAPER}, "--on-error", "skip")
    assert ended.errors == "paper 'a\\n\\x1b[31m[/b]': not an object with a paper; left out\n"
    assert ended.code == 0


wild_papers = st.fixed_dictionaries(
    {},
    optional={
        "title": json_values,
        "full_text": st.lists(st.fixed_dictionaries({"paragraphs": st.lists(st.text(max_size=5)) | json_values}))
        | json_values,
        "qas": st.lists(st.fixed_dictionaries({"question": st.text(max_size=5), "answers": json_values})) | json_values,
    },
)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.text("0123.\n[", max_size=4), wild_papers | json_values | st.just(PAPER), min_size=1, max_size=3)
)
def test_every_question_of_a_file_is_written_or_counted(tmp_path, papers):
    file = tmp_path / "qasper.json"
    file.write_text(json.dumps(papers))
    places = [entry.place for entry in entries(file)]
    found = list(episodes(file, 50, False))
    assert list(dict.fromkeys(item.place.split(", question")[0] for item in found)) == list(dict.fromkeys(places))
    assert sum(isinstance(item, Found) for item in found) >= 6 * sum(paper == PAPER for paper in papers.values())
    for item in found:
        if isinstance(item, Found):
            check(item, 1_000)
            json.dumps(item.messages, ensure_ascii=False).encode()
        elif item.reason == BAD:
            assert item.problem and "\n" not in item.problem
