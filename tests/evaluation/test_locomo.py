import collections
import hashlib
import json
from http.client import IncompleteRead
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.evaluation.baselines.turns import turn_texts, with_turns
from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.evaluation.tasks import locomo_data, locomo_keys
from mlx_deltamem.evaluation.tasks.answers import porter_stem
from mlx_deltamem.evaluation.tasks.fitting import prompt_tokens, text_tokens
from mlx_deltamem.evaluation.tasks.locomo import Locomo
from mlx_deltamem.evaluation.tasks.locomo_data import CATEGORIES
from tests.conftest import REPO, backbone
from tests.evaluation.tables import asked, check_questions, exactly, oracle_and_mute, table, tiny_backbone

pytest.importorskip("nltk")

NUMBERS = {name: number for number, name in CATEGORIES.items()}
LOCOMO10 = REPO.parent / "shared" / "data" / "locomo10.json"
needs_locomo10 = pytest.mark.skipif(not LOCOMO10.exists(), reason="LoCoMo (CC BY-NC 4.0) is not part of this project")


def turn(speaker, text, **more):
    return {"speaker": speaker, "dia_id": "D1:1", "text": text, **more}


def qa(category, question="Who?", answer="Mia", **more):
    name = "adversarial_answer" if category == "adversarial" else "answer"
    return {"question": question, name: answer, "category": NUMBERS[category], "evidence": ["D1:1"], **more}


def sample(*questions, name="conv-1"):
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Mia",
            "speaker_b": "Tom",
            "session_10_date_time": "1:00 pm on 3 June, 2023",
            "session_10": [turn("Mia", "More figs!")],
            "session_1_date_time": "9:00 am on 1 May, 2023",
            "session_1": [turn("Mia", "I bought figs."), turn("Tom", "Nice!", blip_caption="a photo of a fig")],
            "session_2_date_time": "8:30 pm on 2 May, 2023",
            "session_2": [turn("Tom", "Any left?"), turn("Mia", "None.")],
            "session_3_date_time": "8:30 pm on 3 May, 2023",
            "session_3": [],
            "session_11_date_time": "1:00 pm on 4 June, 2023",
        },
        "qa": list(questions),
    }


SILENT = sample() | {
    "conversation": {"speaker_a": "Mia", "speaker_b": "Tom", "session_1_date_time": "", "session_1": []}
}


@pytest.fixture
def locomo(tmp_path):
    def make(*samples, **options):
        path = tmp_path / "locomo.json"
        path.write_text(json.dumps(samples))
        return Locomo(data=path, **options)

    return make


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A task with the questions of the table, and the questions."""
    path = tmp_path_factory.mktemp("pairs") / "locomo.json"
    questions = [qa(row["category"], row["question"], row["gold"]) for row in table("locomo")]
    path.write_text(json.dumps([sample(*questions)]))
    return Locomo(data=path), asked(Locomo(data=path))


@pytest.mark.parametrize("index", range(len(table("locomo"))))
def test_scores_are_those_of_the_rules(pairs, index):
    (task, questions), row = pairs, table("locomo")[index]
    question = questions[index]
    right = question.golds[-1].strip("()")
    letters = {"right": right, "wrong": "b" if right == "a" else "a", "RIGHT": right.upper()}
    reply = row["reply"].format(**letters) if row["category"] == "adversarial" else row["reply"]
    assert task.score(question, reply) == {"f1": pytest.approx(exactly(row["score"]))}, row["why"]


def test_the_table_is_long_enough_and_has_every_category():
    rows = table("locomo")
    assert len(rows) >= 60 and {row["category"] for row in rows} == set(CATEGORIES.values())


def test_the_official_prompt_has_the_newest_session_first(locomo):
    task = locomo(sample(qa("temporal", "When did Mia buy figs?", "1 May 2023")))
    (question,) = asked(task)
    assert question.messages(with_history=True)[1]["content"] == (
        "Below is a conversation between two people: Mia and Tom. The conversation takes place over multiple days and "
        "the date of each conversation is wriiten at the beginning of the conversation.\n\n"
        '\nDATE: 1:00 pm on 3 June, 2023\nCONVERSATION:\nMia said, "More figs!"\n\n'
        '\nDATE: 8:30 pm on 2 May, 2023\nCONVERSATION:\nTom said, "Any left?"\n\nMia said, "None."\n\n'
        '\nDATE: 9:00 am on 1 May, 2023\nCONVERSATION:\nMia said, "I bought figs."\n\nTom said, "Nice!"\n'
        " and shared a photo of a fig.\n"
        "\n\nBased on the above conversations, write a short answer for the following question in a few words. Do not "
        "write complete and lengthy sentences. Answer with exact words from the conversations whenever possible.\n\n"
        "Question: When did Mia buy figs? Use DATE of CONVERSATION to answer with an approximate date."
    )
    system = question.history[0]
    assert system["role"] == "system" and "helpful, respectful and honest assistant" in system["content"]
    assert question.messages(with_history=True)[0] == question.messages(with_history=False)[0] == system
    assert question.messages(with_history=False)[1:] == [{"role": "user", "content": question.question}]
    assert question.context + question.question_with_context == question.messages(with_history=True)[1]["content"]
    assert (task.sampling.temp, task.sampling.top_p, task.sampling.top_k) == (0.4, 0.9, 10)
    assert question.max_tokens == 50
    assert question.age_order == (3, 4, 1, 2, 0)
    assert [turn_texts(question)[index].split('"')[1] for index in question.age_order] == [
        "I bought figs.",
        "Nice!",
        "Any left?",
        "None.",
        "More figs!",
    ]
    assert with_turns(question, (0, 1, 3)).age_order == (2, 1, 0)


def test_a_replayed_history_is_a_message_a_session_or_a_turn_oldest_first(locomo):
    first = {
        "role": "user",
        "content": 'DATE: 9:00 am on 1 May, 2023\nCONVERSATION:\nMia said, "I bought figs."\n\nTom said, "Nice!"\n'
        " and shared a photo of a fig.",
    }
    (question,) = asked(locomo(sample(qa("single_hop")), mode="replay"))
    assert question.context == "" and question.history[1] == first and len(question.history) == 1 + 3
    assert question.messages(with_history=True) == [*question.history, {"role": "user", "content": question.question}]
    (question,) = asked(locomo(sample(qa("single_hop")), mode="replay", message="turn"))
    assert len(question.history) == 1 + 5
    assert question.history[3]["content"] == 'DATE: 8:30 pm on 2 May, 2023\nCONVERSATION:\nTom said, "Any left?"'
    (official,) = asked(locomo(sample(qa("single_hop")), message="turn"))
    assert official.history == question.history and official.context


def test_choices_are_ordered_by_a_hash_of_seed_conversation_and_place(locomo):
    samples = [sample(*[qa("adversarial", answer="figs")] * 20, name=name) for name in ("conv-1", "conv-2")]
    orders = {}
    for seed in (0, 42):
        questions = asked(locomo(*samples, seed=seed))
        for question in questions:
            digest = hashlib.sha256(f"{seed}|{question.group}|{question.index}|cat5".encode()).hexdigest()
            first = int(digest[:16], 16) % 2 == 0
            choices = "(a) No information available (b) figs" if first else "(a) figs (b) No information available"
            assert question.question.endswith(f"Who? {choices}. Select the correct answer by writing (a) or (b).")
            assert question.golds == ("No information available", "(a)" if first else "(b)")
        orders[seed] = [question.golds[1] for question in questions]
        assert set(orders[seed]) == {"(a)", "(b)"} and orders[seed][:20] != orders[seed][20:]
    assert orders[0] != orders[42]


def test_places_are_counted_among_what_is_asked_as_in_the_published_runs(locomo):
    data = sample(qa("adversarial"), qa("single_hop"), qa("adversarial"), qa("multi_hop"))
    places = [(question.id, question.index, question.category) for question in asked(locomo(data))]
    assert places == [
        ("conv-1/0", 0, "adversarial"),
        ("conv-1/1", 1, "single_hop"),
        ("conv-1/2", 2, "adversarial"),
        ("conv-1/3", 3, "multi_hop"),
    ]
    published = locomo(data, sample(qa("adversarial"), name="conv-2"), categories=("multi_hop", "single_hop"))
    assert [(question.id, question.index) for question in asked(published)] == [("conv-1/1", 0), ("conv-1/3", 1)]


def test_questions_know_how_long_ago_their_answer_was_told(locomo):
    told = qa("multi_hop", evidence=["D10:3; D2:1", "D11:2"]), qa("multi_hop", evidence=["D10:1"])
    labels = [question.labels for question in asked(locomo(sample(*told, qa("multi_hop", evidence=[]))))]
    assert labels == [{"distance_sessions": 8.0}, {"distance_sessions": 0.0}, {}]


def named(data):
    """The sample with the names of its turns as in the file of LoCoMo."""
    for key, turns in data["conversation"].items():
        if isinstance(turns, list):
            for number, each in enumerate(turns, 1):
                each["dia_id"] = f"D{key.removeprefix('session_')}:{number}"
    return data


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        # The second turn of the first session follows its first one without a blank line only if that has a picture.
        ({}, ['DATE: 9:00 am on 1 May, 2023\nCONVERSATION:\nMia said, "I bought figs."', 'Mia said, "None."']),
        ({"mode": "replay"}, ['CONVERSATION:\nMia said, "I bought figs."', 'CONVERSATION:\nTom said, "Any left?"']),
        ({"mode": "replay", "message": "turn"}, ['CONVERSATION:\nMia said, "I bought figs."', 'N:\nMia said, "None."']),
    ],
    ids=["official", "sessions", "turns"],
)
def test_the_evidence_is_the_turns_that_the_file_names(locomo, options, shown):
    # One text with two names, a zero, a turn that does not exist, and a text that is no name.
    told = qa("multi_hop", evidence=["D1:1; D2:02", "D2:2", "D3:7", "D"])
    task = locomo(named(sample(told, qa("open_domain", evidence=[]))), **options)
    first, second = asked(task)
    texts = turn_texts(first)
    found = [texts[place] for place in first.evidence]
    assert len(found) == 2 and sorted(first.evidence) == list(first.evidence)
    assert all(any(part in text for text in found) for part in shown)
    # Retrieval looks for the question, not for the instructions around it.
    assert first.query == "Who?" != first.question
    assert (second.evidence, first.evidence_cut, second.evidence_cut) == ((), 0, 0)


def test_evidence_that_has_no_room_in_the_text_is_counted(locomo):
    task = locomo(named(sample(qa("single_hop", evidence=["D1:1", "D10:1"]))))
    tokenizer = tiny_backbone().tokenizer
    whole = asked(task)[0]
    need = len(tokenizer.apply_chat_template(whole.messages(with_history=True), add_generation_prompt=True))
    assert (len(whole.evidence), whole.evidence_cut) == (2, 0)
    cut = asked(task, need + 50 - 10)[0]
    assert "More figs!" not in cut.context and (len(cut.evidence), cut.evidence_cut) == (1, 1)


def test_the_answer_key_is_judged_only_in_the_file_that_was_audited(locomo, monkeypatch):
    data = sample(*[qa("single_hop")] * 2, qa("adversarial", answer="figs"), name="conv-48")
    assert [question.labels for question in asked(locomo(data))] == [{"distance_sessions": 9.0}] * 3
    digest = hashlib.sha256(locomo(data).data.read_bytes()).hexdigest()
    monkeypatch.setattr(locomo_keys, "AUDITED_SHA256", digest)
    assert [question.labels.get("answer key") for question in asked(locomo(data))] == ["wrong", "sound", None]


def test_what_does_not_fit_the_window_is_the_newest(locomo):
    task = locomo(sample(qa("single_hop"), qa("single_hop", "How many of the figs did Mia give to Tom?")))
    whole = asked(task)[0]
    tokenizer = tiny_backbone().tokenizer

    def tokens(question):
        return len(tokenizer.apply_chat_template(question.messages(with_history=True), add_generation_prompt=True))

    need = max(map(tokens, asked(task)))
    assert asked(task, need + 50 + 20)[0].context == whole.context
    for window in range(need + 40, need - 60, -7):
        questions = asked(task, window)
        assert max(map(tokens, questions)) <= window - 50 and questions[0].context == questions[1].context
        assert questions[0].history == whole.history
    for window, kept, lost in (
        (need + 50 - 10, ["None.", "Nice!"], "June"),
        (need - text_tokens(tiny_backbone(), "DATE: 1:00 pm on 3 June, 2023\nCONVERSATION:") - 20, ["Nice!"], "June"),
    ):
        context = asked(task, window)[0].context
        assert lost not in context and all(text in context for text in kept)
    with pytest.raises(ValueError, match="no room for a history"):
        asked(task, 100)


class UnevenTokenizer:
    """Counts more tokens in a chat than in its parts, as tokenizers with merges may."""

    CHAT = "<chat> "

    def encode(self, text, add_special_tokens, verbose):
        words = text.removeprefix(self.CHAT).split()
        return words + words[::10] if text.startswith(self.CHAT) else words

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, enable_thinking=True):
        return self.CHAT + " ".join(message["content"] for message in messages)


def test_the_whole_prompt_fits_where_its_parts_have_fewer_tokens(locomo):
    task = locomo(sample(qa("single_hop")))
    lengths = []
    for window in range(190, 240):
        (question,) = task.questions(Backbone(UnevenTokenizer(), window))
        lengths.append(prompt_tokens(Backbone(UnevenTokenizer(), window), question.messages(with_history=True)))
        assert lengths[-1] <= window - 50
    assert len(set(lengths)) > 3


def test_an_oracle_has_all_points_and_a_mute_none(locomo):
    task = locomo(
        sample(
            qa("multi_hop", answer="figs, dates, Warrior Pose (Veera)"),
            qa("temporal", answer=2022),
            qa("open_domain", answer="Likely no; she likes figs"),
            qa("single_hop", answer="the plan (a bold one)"),
            qa("adversarial", answer="figs"),
        )
    )
    oracle_and_mute(task, asked(task))
    check_questions(asked(task))


@given(st.text(), st.sampled_from(sorted(NUMBERS)))
def test_any_reply_has_a_score(pairs, reply, category):
    task, questions = pairs
    question = next(question for question in questions if question.category == category)
    assert 0 <= task.score(question, reply)["f1"] <= 1


def test_without_the_stemmer_there_are_no_scores(locomo, monkeypatch):
    porter_stem.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"LoCoMo's F1 needs the package nltk.*pip install 'mlx-deltamem\[evaluate\]'"):
        asked(locomo(sample(qa("single_hop"))))
    monkeypatch.undo()
    assert porter_stem()("buy") == "buy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a list of conversations"),
        ("{}", "is not a list of conversations"),
        ("[{]", "is not JSON"),
        ("[{}]", "conversation 1 is damaged \\(no 'conversation'\\)"),
        ("[3]", "conversation 1 is damaged"),
        (json.dumps([SILENT]), "is damaged \\(it has no turns\\)"),
        (
            json.dumps([sample({"question": "Who?", "answer": "x", "category": 6})]),
            "category 6, expected 1 to 5",
        ),
        (json.dumps([sample({"question": "Who?", "category": 1})]), "is damaged \\(no 'answer'\\)"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "locomo.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as told:
        asked(Locomo(data=path))
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*raw.githubusercontent.com/snap-research/locomo"):
        asked(Locomo(data=tmp_path / "none.json"))


def test_it_is_downloaded_once(tmp_path, monkeypatch):
    source = tmp_path / "source.json"
    source.write_text(json.dumps([sample(qa("single_hop"))]))
    monkeypatch.setattr(locomo_data, "URL", source.as_uri())
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    assert len(asked(Locomo())) == 1
    source.unlink()
    assert len(asked(Locomo())) == 1
    assert [path.name for path in (tmp_path / "home" / "mlx_deltamem").iterdir()] == ["locomo10.json"]


@pytest.mark.parametrize("content", [None, b"<html>"])
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, content):
    source = tmp_path / "source.json"
    if content is not None:
        source.write_bytes(content)
    monkeypatch.setattr(locomo_data, "URL", source.as_uri())
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"cannot download .*source\.json|source\.json is not JSON"):
        asked(Locomo())
    assert not list((tmp_path / "home").rglob("*.json"))


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise IncompleteRead(b"[{")

    monkeypatch.setattr(locomo_data.urllib.request, "urlopen", broken)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"cannot download .* \(IncompleteRead.*; download it in another way"):
        asked(Locomo())
    assert not list((tmp_path / "home").rglob("*.json"))


def test_a_template_that_refuses_the_prompt_is_told(locomo):
    tokenizer = load_tokenizer(Path(backbone()))
    tokenizer.chat_template = "{{ raise_exception('no system prompts') }}"
    with pytest.raises(ValueError, match=r"the chat template refuses 2 messages \(system, user\).*no system pr"):
        list(locomo(sample(qa("single_hop"))).questions(Backbone(tokenizer, 4000)))


def test_the_tokens_that_turn_thinking_off_count():
    tokenizer = load_tokenizer(Path(backbone()))
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is false %} no thoughts{% endif %}"
    count = prompt_tokens(Backbone(tokenizer, 4000), [{"role": "user", "content": "Who?"}])
    assert count == len(tokenizer.encode("Who? no thoughts", add_special_tokens=False))


def test_differences_follow_the_options():
    assert any("seed" in difference for difference in Locomo().differences)
    assert len(Locomo(mode="replay").differences) > len(Locomo().differences)


@pytest.mark.slow
@needs_locomo10
def test_the_real_conversations_have_the_published_counts():
    task = Locomo(data=LOCOMO10)
    questions = asked(task)
    counts = collections.Counter(question.category for question in questions)
    assert [counts[name] for name in CATEGORIES.values()] == [282, 321, 96, 841, 446]
    assert len({question.group for question in questions}) == 10
    # The counts of the audit's report, by category.
    wrong = collections.Counter(
        question.category for question in questions if question.labels.get("answer key") == "wrong"
    )
    assert [wrong[name] for name in CATEGORIES.values()] == [28, 26, 9, 36, 0]
    assert collections.Counter(question.labels.get("answer key") for question in questions)["sound"] == 1540 - 99
    # Four questions name no turn.
    assert sum(not question.evidence for question in questions) == 4
    check_questions(questions)
    oracle_and_mute(task, questions)


@pytest.mark.slow
@needs_locomo10
def test_the_first_real_conversation_is_read_as_it_is():
    question = asked(Locomo(data=LOCOMO10))[0]
    assert question.group == "conv-26" and len(question.history) == 1 + 19
    assert question.history[1]["content"].startswith("DATE: 1:56 pm on 8 May, 2023\nCONVERSATION:\nCaroline said, ")
    assert question.context.index("22 October, 2023") < question.context.index("8 May, 2023")
