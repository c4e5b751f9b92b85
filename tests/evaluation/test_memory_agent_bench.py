import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.evaluation.tasks import mab_data, rows
from mlx_deltamem.evaluation.tasks.fitting import clip, fit, sentence_chunks, text_tokens
from mlx_deltamem.evaluation.tasks.mab_data import SPLITS, find_source
from mlx_deltamem.evaluation.tasks.memory_agent_bench import MemoryAgentBench
from mlx_deltamem.evaluation.tasks.movies import film_name, listed, load_films
from tests.evaluation.tables import asked, check_questions, exactly, oracle_and_mute, table, tiny_backbone

pytest.importorskip("rapidfuzz")

MARKER = "\n\n[... context truncated ...]\n\n"
FILMS = {
    "<http://dbpedia.org/resource/Heat_(1995_film)>": 1,
    "<http://dbpedia.org/resource/12_Angry_Men_(1957_film)>": 2,
    "<http://dbpedia.org/resource/Alien_(film)>": 3,
    "<http://dbpedia.org/resource/The_Matrix>": 4,
    "<http://dbpedia.org/resource/Titanic_(1997_film)>": 5,
    "<http://dbpedia.org/resource/Up_(2009_film)>": 6,
    "Jaws": 7,
}
# A row of each source, with questions as its own look like.
NAMES = {
    "ruler_qa1_197K": ("accurate_retrieval", 50),
    "ruler_qa2_421K": ("accurate_retrieval", 50),
    "longmemeval_s*": ("accurate_retrieval", 50),
    "eventqa_full": ("accurate_retrieval", 40),
    "eventqa_65536": ("accurate_retrieval", 40),
    "eventqa_131072": ("accurate_retrieval", 40),
    "icl_banking77_5900shot_balance": ("test_time_learning", 20),
    "icl_clinic150_7050shot_balance": ("test_time_learning", 20),
    "icl_nlu_8296shot_balance": ("test_time_learning", 20),
    "icl_trec_coarse_6600shot_balance": ("test_time_learning", 20),
    "icl_trec_fine_6400shot_balance": ("test_time_learning", 20),
    "recsys_redial_full": ("test_time_learning", 300),
    "infbench_sum_eng_shots2": ("long_range_understanding", 1200),
    "detective_qa": ("long_range_understanding", 2000),
    "factconsolidation_sh_6k": ("selective_forgetting", 10),
    "factconsolidation_mh_262k": ("selective_forgetting", 10),
}


def row(source, *pairs, context="Document 1: Normandy is in France. It is green."):
    """A row of the schema of the data set on the Hub."""
    empty = (
        "demo",
        "haystack_sessions",
        "keypoints",
        "previous_events",
        "question_dates",
        "question_ids",
        "question_types",
    )
    return {
        "context": context,
        "questions": [question for question, _ in pairs],
        "answers": [list(answers) for _, answers in pairs],
        "metadata": dict.fromkeys(empty)
        | {"qa_pair_ids": [f"{source}_{i}" for i in range(len(pairs))], "source": source},
    }


@pytest.fixture
def mab(tmp_path):
    def make(*rows, **options):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "entity2id.json").write_text(json.dumps(FILMS))
        return MemoryAgentBench(data=tmp_path, **options)

    load_films.cache_clear()
    return make


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    read = [row(pair["source"], (pair["question"], pair["gold"])) for pair in table("memory_agent_bench")]
    (folder / "rows.json").write_text(json.dumps(read))
    (folder / "entity2id.json").write_text(json.dumps(FILMS))
    task = MemoryAgentBench(data=folder / "rows.json")
    return task, asked(task)


@pytest.mark.parametrize("index", range(len(table("memory_agent_bench"))))
def test_scores_are_those_of_the_rules(pairs, index):
    (task, questions), pair = pairs, table("memory_agent_bench")[index]
    assert task.score(questions[index], pair["reply"]) == {"score": pytest.approx(exactly(pair["score"]))}, pair["why"]


def test_the_table_is_long_enough_and_has_every_metric():
    rows = table("memory_agent_bench")
    assert len(rows) >= 60
    assert {find_source(row["source"]).metric for row in rows} == {"accuracy", "f1", "recall@5"}


def test_every_source_has_its_split_and_its_longest_reply(mab):
    gold = {"recsys_redial_full": ["3", "1"], "detective_qa": ["A"]}
    task = mab(*(row(name, ("What?", gold.get(name, ["an answer", "the reply"]))) for name in NAMES))
    questions = asked(task)
    assert {question.labels["source"]: (question.category, question.max_tokens) for question in questions} == NAMES
    assert {category for category, _ in NAMES.values()} == set(SPLITS.values())
    oracle_and_mute(task, questions)
    check_questions(questions)
    assert task.sampling.temp == 0


def test_questions_of_a_row_are_a_group_that_shares_its_context(mab):
    facts = row("factconsolidation_sh_6k", ("Who?", ["Mia"]), ("Where?", ["Oslo", "Norway"]))
    questions = asked(mab(facts, facts, row("ruler_qa1_197K", ("Who?", ["Tom"]))))
    assert [(question.id, question.group, question.index) for question in questions] == [
        ("factconsolidation_sh_6k/0/0", "factconsolidation_sh_6k/0", 0),
        ("factconsolidation_sh_6k/0/1", "factconsolidation_sh_6k/0", 1),
        ("factconsolidation_sh_6k/1/0", "factconsolidation_sh_6k/1", 2),
        ("factconsolidation_sh_6k/1/1", "factconsolidation_sh_6k/1", 3),
        ("ruler_qa1_197K/0/0", "ruler_qa1_197K/0", 4),
    ]
    check_questions(questions)
    assert questions[1].messages(with_history=True) == [
        {
            "role": "user",
            "content": "Use only the memory context below to answer the question.\n"
            "Reply with a short entity, phrase, number, or sentence only.\n"
            "If the answer is not supported by the context, reply exactly: I don't know.\n\n"
            "Document 1: Normandy is in France. It is green.\n\nQuestion: Where?\nAnswer:",
        }
    ]
    assert questions[1].history == ({"role": "user", "content": "Document 1: Normandy is in France. It is green."},)
    asked_alone = questions[1].messages(with_history=False)[0]["content"]
    assert "Normandy" not in asked_alone and asked_alone.endswith("I don't know.\n\nQuestion: Where?\nAnswer:")


def test_long_contexts_are_clipped_in_characters(mab):
    context = "".join(f"{i:04}. " for i in range(1000))
    (question,) = asked(mab(row("ruler_qa1_197K", ("Who?", ["Mia"]), context=context), characters=630))
    (told,) = question.history
    head, tail = told["content"].split(MARKER)
    assert len(told["content"]) <= 630 and question.context.endswith(told["content"])
    assert context.startswith(head) and context.endswith(tail)
    assert (len(head), len(tail)) == (199, 400)  # of 630 - 31
    with pytest.raises(ValueError, match="--mab-characters is 199; expected a whole number from 200 to"):
        MemoryAgentBench(characters=199)


def test_what_is_too_long_for_the_window_is_clipped_in_tokens(mab):
    context = "".join(f"Fact {i}. " for i in range(300))
    task = mab(row("ruler_qa1_197K", ("Who?", ["Mia"]), ("Who was it in the end?", ["Mia"]), context=context))
    (question, other), tokenizer = asked(task, 600), tiny_backbone().tokenizer
    longest = tokenizer.apply_chat_template(other.messages(with_history=True), add_generation_prompt=True)
    assert 600 - 50 - 20 < len(longest) <= 600 - 50 and question.context == other.context
    assert MARKER in question.context and "Fact 0." in question.context and "Fact 299." in question.context
    assert "Fact 150." not in question.context
    with pytest.raises(ValueError, match="no room for a history"):
        asked(task, 60)


def test_chunks_are_the_whole_context_a_turn_each(mab):
    context = "".join(f"Fact {i} is told here. " for i in range(60))
    task = mab(
        row("ruler_qa1_197K", ("Who?", ["Mia"]), context=context), ingest="chunks", chunk_tokens=64, characters=300
    )
    (question,) = asked(task)
    texts = [message["content"] for message in question.history]
    assert "".join(texts) == context and len(texts) > 5
    assert {message["role"] for message in question.history} == {"user"}
    assert max(text_tokens(tiny_backbone(), text) for text in texts) <= 64
    assert all(text.endswith("here.") for text in texts[:-1])
    # In the text there is the clipped context all the same.
    assert MARKER in question.context
    assert len(task.differences) > len(mab(row("ruler_qa1_197K", ("Who?", ["Mia"]))).differences)


def count_words(text):
    return len(text.split())


@given(st.text(st.sampled_from("ab. \n?"), max_size=300), st.integers(1, 12))
def test_chunks_lose_nothing(text, longest):
    chunks = list(sentence_chunks(text, longest, count_words))
    assert "".join(chunks) == text and all(chunks)
    assert all(count_words(chunk) <= longest for chunk in chunks)


@given(st.text(max_size=400), st.integers(100, 300))
def test_clipped_texts_are_short_enough(text, longest):
    clipped = clip(text, longest)
    assert len(clipped) <= longest and (clipped == text) == (len(text) <= longest)


@given(st.integers(0, 400), st.integers(30, 200))
def test_fitted_texts_are_as_long_as_can_be(words, longest):
    text = " ".join(f"w{i:03}" for i in range(words))
    fitted = fit(text, longest, count_words)
    assert count_words(fitted) <= longest and (fitted == text) == (words <= longest)
    if words > longest:
        assert count_words(fitted) >= longest - 2


def test_a_text_that_cannot_be_short_enough_is_refused():
    with pytest.raises(ValueError, match="fit into 3 tokens"):
        fit("word " * 100, 3, count_words)


def test_splits_and_sources_can_be_chosen(mab):
    rows = [row(name, ("What?", ["3"])) for name in NAMES]
    names = {question.labels["source"] for question in asked(mab(*rows, sources=("eventqa", "icl_nlu")))}
    assert names == {"eventqa_full", "eventqa_65536", "eventqa_131072", "icl_nlu_8296shot_balance"}
    questions = asked(mab(*rows, splits=("Conflict_Resolution",)))
    assert {question.category for question in questions} == {"selective_forgetting"}
    with pytest.raises(ValueError, match="no rows of nothing in Accurate_Retrieval"):
        asked(mab(*rows, sources=("nothing",), splits=("Accurate_Retrieval",)))


def test_files_of_the_hub_can_be_read_from_disk(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "data").mkdir()
    for split, name in (("Accurate_Retrieval", "ruler_qa1_197K"), ("Conflict_Resolution", "factconsolidation_mh_6k")):
        rows = [row(name, ("Who?", ["Mia", "Tom"]), ("Where?", ["Oslo"])), row(name, ("When?", ["now"]))]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("of the repo")
    questions = asked(MemoryAgentBench(data=tmp_path))
    assert [(question.id, question.golds) for question in questions[:3]] == [
        ("ruler_qa1_197K/0/0", ("Mia", "Tom")),
        ("ruler_qa1_197K/0/1", ("Oslo",)),
        ("ruler_qa1_197K/1/0", ("now",)),
    ]
    assert len(questions) == 6
    (tmp_path / "data" / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"broken\.parquet is damaged"):
        asked(MemoryAgentBench(data=tmp_path / "data" / "broken.parquet"))


def test_without_data_it_is_the_data_set_on_the_hub(monkeypatch):
    loaded = []

    def hub_rows(repo, split, files):
        loaded.append((repo, split, files))
        yield f"{repo} {split} row 1", row("icl_nlu_8296shot_balance", ("What?", ["3"]))

    monkeypatch.setattr(mab_data, "hub_rows", hub_rows)
    assert len(asked(MemoryAgentBench(splits=("Test_Time_Learning",)))) == 1
    assert loaded == [("ai-hyz/MemoryAgentBench", "Test_Time_Learning", "data/Test_Time_Learning-*.parquet")]


def test_rows_of_the_hub_are_those_of_the_files_that_are_named(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    for name in ("test-00000-of-00002", "test-00001-of-00002", "train-00000-of-00001"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps({"file": name}) + "\n")
    found = list(rows.hub_rows(str(tmp_path), "test", "data/test-*.jsonl"))
    assert [row["file"] for _, row in found] == ["test-00000-of-00002", "test-00001-of-00002"]
    assert found[1][0] == f"{tmp_path} test row 2"
    with pytest.raises(FileNotFoundError, match="cannot read the data set") as told:
        list(rows.hub_rows(str(tmp_path), "test", "data/none-*.jsonl"))
    assert "\n" not in str(told.value)


def test_rows_of_the_hub_need_a_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package datasets.*pip install 'mlx-deltamem\[evaluate\]'"):
        list(rows.hub_rows("user/name", "train", "*.parquet"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"context": "x"}, "rows.jsonl row 1 has no metadata with a source"),
        (row("other_source", ("Who?", ["Mia"])), "there is no source 'other_source'"),
        (row("ruler_qa1_197K", ("Who?", ["Mia"])) | {"context": None}, "row 1 has no text `context`"),
        (
            row("ruler_qa1_197K", ("Who?", ["Mia"])) | {"answers": []},
            "has 1 questions and 0 answers",
        ),
        (row("ruler_qa1_197K", ("Who?", [" "])), "has a question without an answer"),
        (row("recsys_redial_full", ("Who?", ["99"])), "has the films '99', which are not in entity2id.json"),
        ([1], "row 1 is a list, expected an object"),
    ],
)
def test_damaged_rows_are_told_in_one_line(mab, broken, message):
    with pytest.raises(ValueError, match=message) as told:
        asked(mab(broken))
    assert "\n" not in str(told.value)


def test_missing_data_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no data file in"):
        asked(MemoryAgentBench(data=tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        asked(MemoryAgentBench(data=tmp_path / "none.jsonl"))
    (tmp_path / "none.csv").touch()
    with pytest.raises(ValueError, match=r"expected one of \.jsonl, \.json, \.parquet"):
        asked(MemoryAgentBench(data=tmp_path / "none.csv"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("recsys_redial_full", ("Who?", ["1"]))))
    load_films.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"entity2id.json.*beside the data"):
        asked(MemoryAgentBench(data=tmp_path / "rows.jsonl"))


def test_without_the_package_that_compares_films_nothing_is_asked(mab, monkeypatch):
    task = mab(row("recsys_redial_full", ("Who?", ["1"])))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"recall@5 of films needs the package rapidfuzz"):
        asked(task)


def test_other_lengths_than_the_published_one_are_told():
    assert len(MemoryAgentBench(characters=500).differences) == len(MemoryAgentBench().differences) + 1


def test_names_of_films():
    assert [film_name(entity) for entity in FILMS] == [
        "Heat",
        "12 Angry Men",
        "Alien",
        "The Matrix",
        "Titanic",
        "Up",
        "Jaws",
    ]


def test_what_comes_before_a_numbered_list_is_not_listed():
    assert listed("Sure! Here are some, I hope:\n1. Heat (1995)\n2. Alien") == ["Heat", "Alien"]
    assert listed("Heat, Alien") == ["Heat", "Alien"]
