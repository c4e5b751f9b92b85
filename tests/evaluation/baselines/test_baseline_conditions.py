"""Baselines as conditions: with everything in the text they equal `base`, and a record says what was shown."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import mlx.core as mx
import pytest

pytest.importorskip("bm25s")
pytest.importorskip("model2vec")

from mlx_deltamem import attach, detach, load, load_adapter, make_prompt_cache
from mlx_deltamem.evaluation.analysis import analyse
from mlx_deltamem.evaluation.asking import Asker, Job, Manner
from mlx_deltamem.evaluation.baselines.retrieval import Bm25Index
from mlx_deltamem.evaluation.baselines.summary import running_summary
from mlx_deltamem.evaluation.baselines.turns import text_bytes, turn_texts, with_turns
from mlx_deltamem.evaluation.conditions import CONDITIONS, Memory, find_condition, parse_conditions
from mlx_deltamem.evaluation.effects import sum_up
from mlx_deltamem.evaluation.prepared import prepare
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.run import RECORDS_FILE, EvaluationRun, Plan
from mlx_deltamem.evaluation.task import Backbone
from tests.conftest import adapter, backbone
from tests.evaluation.baselines.vectors import save_vectors
from tests.evaluation.runs import Small, asker, chat, loaded, questions

BASELINES = ("last", "last-40", "bm25", "bm25-1", "bm25-all", "dense-1", "dense-all", "oracle", "summary-8")
WITH_MEMORY = ("bm25-1+state", "dense-1+shuffled", "oracle+zeroed", "last-40+state", "summary-8+state")
EVERY = (*CONDITIONS, "chat-30", *BASELINES, *WITH_MEMORY)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> str:
    return save_vectors(tmp_path_factory.mktemp("vectors"))


def with_evidence(in_prompt: bool = False) -> list[Question]:
    return [replace(question, evidence=(0,)) for question in questions(3, 2, in_prompt)]


def replies(asked: list[Question], condition: str, vectors: str = "", batch: int = 4) -> list[str]:
    one, found = asker(asked, manner=Manner(dense_model=vectors)), find_condition(condition)
    jobs = [Job(question, 5) for question in asked]
    parts = [one.ask(jobs[at : at + batch], found)[0] for at in range(0, len(jobs), batch)]
    return [reply.text for part in parts for reply in part]


@pytest.mark.parametrize(
    ("name", "kind", "amount", "memory"),
    [
        ("last", "last", None, Memory.EMPTY),
        ("last-300", "last", 300, Memory.EMPTY),
        ("bm25", "bm25", 4, Memory.EMPTY),
        ("dense-12+state", "dense", 12, Memory.OWN),
        ("oracle+shuffled", "oracle", None, Memory.OTHER),
        ("summary", "summary", 256, Memory.EMPTY),
        ("summary-9+zeroed", "summary", 9, Memory.ZEROED),
    ],
)
def test_names(name, kind, amount, memory):
    (found,) = parse_conditions([name])
    assert (found.name, found.baseline.kind.value, found.baseline.amount, found.memory) == (name, kind, amount, memory)
    # The prompt is only read, as in `base` and `replay`.
    assert found.text and found.writes is False and found.chat is None


@pytest.mark.parametrize(
    "name",
    [
        *("bm25-0", "bm25-", "bm25-x", "oracle-2", "last-all", "summary-all", "bm25+", "bm25+none", "+state"),
        *("base+state", "bm25-1+state+state", "BM25", "bm25-1000000000", "bm25:1"),
    ],
)
def test_what_is_no_name(name):
    with pytest.raises(ValueError, match=r"there is no condition .*; expected base, .* or a baseline: last, last-N"):
        parse_conditions([name])


@pytest.mark.slow
@pytest.mark.parametrize("in_prompt", [False, True], ids=["messages", "prompt"])
def test_all_turns_are_base(in_prompt, vectors):
    asked = questions(4, 2, in_prompt)
    base, replay = replies(asked, "base"), replies(asked, "replay")
    assert base != replay
    for name in ("bm25-all", "dense-all", "last-999999", "bm25-99"):
        assert replies(asked, name, vectors) == base
        assert replies(asked, f"{name}+state", vectors) == replay


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bm25-1", "dense-1", "oracle", "last-30"])
@pytest.mark.parametrize("beside", ["", "+state", "+shuffled"])
def test_a_condition_shows_the_chosen_turns_and_nothing_else(name, beside, vectors):
    """It equals `base`, or `replay`, of questions with a shorter history. The memory still has the whole history."""
    asked = with_evidence()[2:]
    one = asker(asked, manner=Manner(dense_model=vectors))
    condition = find_condition(name + beside)
    shown = [one._shown(question, condition) for question in asked]
    assert all(0 < len(each.turns) < len(turn_texts(question)) for each, question in zip(shown, asked, strict=True))
    cut = [with_turns(question, each.turns) for each, question in zip(shown, asked, strict=True)]
    # A group by itself, for its other text; with the memory of the group that it belongs to.
    alone = [replace(question, group=f"alone {place}") for place, question in enumerate(cut)]
    by_group = {question.group: question for question in asked}
    partners = {group: next(other for other in by_group if other != group) for group in by_group}
    told = {new.group: by_group[old.group] for new, old in zip(alone, asked, strict=True)}
    told |= {f"of {group}": by_group[partners[group]] for group in by_group}
    plain = Asker(
        *loaded(), Manner(), told, {new.group: f"of {old.group}" for new, old in zip(alone, asked, strict=True)}
    )
    like = {"": "base", "+state": "replay"}.get(beside)
    if like is None:
        kind = replace(CONDITIONS["replay"], memory=Memory.OTHER)
        partner = Asker(*loaded(), Manner(dense_model=vectors), by_group, partners)
        found = [partner.ask([Job(question, 0)], condition)[0][0].text for question in asked]
    else:
        kind = CONDITIONS[like]
        found = replies(asked, name + beside, vectors, batch=1)
    assert found == [plain.ask([Job(question, 0)], kind)[0][0].text for question in alone]
    assert found == replies(asked, name + beside, vectors) or beside == "+shuffled"


@pytest.mark.slow
def test_the_newest_turns_fit():
    asked = questions(4, 1)
    one = asker(asked)
    tokenizer = loaded()[1]
    for tokens in (1, 25, 26, 30, 52, 97, 98):
        for question in asked:
            texts = turn_texts(question)
            lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
            turns = one._shown(question, find_condition(f"last-{tokens}")).turns
            first = len(texts) - len(turns)
            assert turns == tuple(range(first, len(texts)))
            assert sum(lengths[first:]) <= tokens and (not first or sum(lengths[first - 1 :]) > tokens)
    newest_first = replace(asked[3], age_order=(3, 2, 1, 0))
    assert one._shown(newest_first, find_condition("last-30")).turns[0] == 0
    # As many bytes as the memory: here more than any history, then fewer.
    assert one._shown(asked[3], find_condition("last")).turns == (0, 1, 2, 3)
    two = text_bytes(with_turns(asked[3], (2, 3)))
    for room, turns in ((two, (2, 3)), (two - 1, (3,)), (5, ())):
        one._showing.memory_bytes = room
        assert one._shown(asked[3], find_condition("last")).turns == turns


@pytest.mark.slow
def test_the_summary_is_the_frozen_models():
    model, tokenizer = load(backbone(), adapter=adapter())
    texts = [f"Turn {number}: " + "the sea is blue and the dog is called Rex. " * 9 for number in range(8)]
    summary, read = running_summary(model, tokenizer, texts, 6, 64)
    detach(model)
    plain, _ = load(backbone())
    attach(plain, load_adapter(adapter("qwen3_msw4")))
    assert running_summary(plain, tokenizer, texts, 6, 2048) == (summary, read)
    assert 0 < len(tokenizer.encode(summary, add_special_tokens=False)) <= 8
    # All turns were read, some at a time, and the later ones beside the summary.
    assert read > sum(len(tokenizer.encode(text)) for text in texts)
    assert running_summary(plain, tokenizer, [], 6, 64) == ("", 0)


@pytest.mark.slow
def test_the_summary_is_in_the_prompt():
    asked = questions(2, 1)
    one, condition = asker(asked), find_condition("summary-8")
    summary, _ = running_summary(*loaded(), turn_texts(asked[1]), 8, 2048)
    prompt = loaded()[1].decode(one.prompt(asked[1], condition).own.ids)
    assert f"A summary of our conversation so far: {summary}\n\nWhat was it?" in prompt and "Noted." not in prompt
    assert one.evidence(replace(asked[1], evidence=(0,)), condition) is None


def test_evidence_in_the_text(vectors):
    asked = [replace(question, evidence=(0, 2)) for question in questions(4, 1)]
    one = asker(asked, manner=Manner(dense_model=vectors))
    shares = {name: one.evidence(asked[3], find_condition(name)) for name in EVERY}
    assert shares["base"] == shares["full"] == shares["replay"] == shares["oracle"] == shares["bm25-all"] == 1
    assert shares["state"] is shares["chat"] is shares["none"] is shares["summary-8"] is None
    assert one.evidence(asked[3], find_condition("last-60")) == 0.5
    # Evidence that had no room in the text of the benchmark.
    cut = replace(asked[3], evidence_cut=2)
    assert one.evidence(cut, find_condition("base")) == 0.5 and one.evidence(cut, find_condition("last-60")) == 0.25
    assert one.evidence(replace(asked[3], evidence=(), evidence_cut=1), find_condition("base")) == 0
    assert one.evidence(replace(asked[3], evidence=()), find_condition("base")) is None
    assert one.evidence(replace(asked[3], evidence=None), find_condition("bm25")) is None


def test_retrieval_looks_for_the_question_without_its_instructions():
    asked = questions(4, 1)[3]
    texts = turn_texts(asked)
    shown = asker([asked])._shown
    # Instructions in the words of the first turn, and a question in those of the last one.
    prompt = replace(asked, question=f"{texts[0]} {texts[0]} {texts[-1]}")
    condition = find_condition("bm25-1")
    assert shown(prompt, condition).turns == (0,)
    assert shown(replace(prompt, query=texts[-1]), condition).turns == (len(texts) - 1,)
    assert shown(replace(prompt, query=texts[-1]), condition).question.question == prompt.question


def test_an_oracle_needs_to_know_where_the_evidence_is(tmp_path):
    model, tokenizer = loaded()
    run = EvaluationRun(model, tokenizer, Plan(parse_conditions(["oracle+state"])), tmp_path)
    with pytest.raises(ValueError, match=r"the data do not say them for the question '0/0'; leave oracle out"):
        run.check(prepare(Small(), Manner(), model, tokenizer, None))


@dataclass(frozen=True)
class Told(Small):
    """Questions with evidence, and a score that only the right answer has."""

    name = "told"

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        for place, question in enumerate(with_evidence()):
            yield replace(question, golds=(f"Rex {place}",))

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        return {"right": float(reply == question.golds[0])}


@pytest.mark.slow
def test_an_oracle_scores_all_and_a_mute_one_nothing_under_every_condition(tmp_path, monkeypatch, vectors):
    """A model that says a given text instead of its own, question by question."""
    model, tokenizer = loaded()
    manner = Manner(reply_tokens=3, dense_model=vectors)
    prepared = prepare(Told(), manner, model, tokenizer, None)
    end = next(iter(tokenizer.eos_token_ids))
    for knows in (True, False):

        def says(asker: Asker, job: Job, knows: bool = knows):
            ids = tokenizer.encode(job.question.golds[0], add_special_tokens=False) if knows else []
            script = chain(ids, repeat(end))
            return lambda logprobs: mx.array([next(script)])

        monkeypatch.setattr(Asker, "_sampler", says)
        monkeypatch.setattr("tests.evaluation.baselines.test_baseline_conditions.questions", long_questions)
        folder = tmp_path / str(knows)
        folder.mkdir()
        run = EvaluationRun(model, tokenizer, Plan(parse_conditions(EVERY), batch_size=4), folder)
        run.ask([prepared], lambda *_: None)
        result = analyse(prepared.task, run.rows(prepared, EVERY), EVERY, 0)
        means = {name: result.whole.means[name, "right"].value for name in EVERY}
        assert means == dict.fromkeys(EVERY, 100.0 if knows else 0.0)


def long_questions(*args, **options) -> list[Question]:
    return [replace(question, max_tokens=20) for question in questions(*args, **options)]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_records(tmp_path, vectors):
    names = ("bm25-1", "dense-1+state", "oracle", "summary-8", "last-30+shuffled")
    model, tokenizer = loaded()
    prepared = prepare(Told(), Manner(dense_model=vectors), model, tokenizer, None)

    def ask(folder: Path) -> bytes:
        run = EvaluationRun(model, tokenizer, Plan(parse_conditions(names), batch_size=2), folder)
        run.check(prepared)
        run.ask([prepared], lambda *_: None)
        return (folder / RECORDS_FILE).read_bytes()

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    content = ask(whole)
    assert len(content.splitlines()) == len(names) * 6
    for length in (len(content) // 5 + 7, len(content) // 2, len(content) - 1):
        (broken / RECORDS_FILE).write_bytes(content[:length])
        assert ask(broken) == content
    assert {row["evidence"] for row in map(json.loads, content.splitlines())} <= {None, 0.0, 1.0}


@pytest.mark.slow
def test_bytes_are_counted_by_serialising(tmp_path, vectors):
    model, tokenizer = loaded()
    names = (
        "base",
        "state",
        "replay",
        "none",
        "chat",
        "chat-30",
        "bm25-1",
        "bm25-1+state",
        "oracle",
        "last-30",
        "summary-8",
    )
    prepared = prepare(Told(), Manner(reply_tokens=3), model, tokenizer, None)
    run = EvaluationRun(model, tokenizer, Plan(parse_conditions(names), batch_size=4), tmp_path)
    run.ask([prepared], lambda *_: None)
    costs = {name: sum_up(run.measures_of(prepared, name)) for name in names}
    kept = {name: each.kept_bytes for name, each in costs.items()}

    asked = prepared.questions
    mean = lambda numbers: sum(numbers) / len(asked)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/memory.safetensors"
        mx.save_safetensors(path, {str(at): state for at, state in enumerate(make_prompt_cache(model)[-1].cache)})
        memory = Path(path).stat().st_size
    text = mean(text_bytes(question) for question in asked)
    index = mean(Bm25Index(turn_texts(question)).kept_bytes() for question in asked)
    assert kept["none"] == 0 and kept["base"] == kept["oracle"] == text
    assert kept["state"] == memory and kept["replay"] == pytest.approx(text + memory)
    assert kept["bm25-1"] == pytest.approx(text + index)
    assert kept["bm25-1+state"] == pytest.approx(text + index + memory)
    assert 0 < kept["last-30"] < text and 0 < kept["summary-8"] < 100
    # Layers without a memory are not part of a chat's memory; here all have one.
    assert kept["chat"] == memory and memory < kept["chat-30"] <= memory + 30 * 12

    assert all(each.turns == mean(len(turn_texts(question)) for question in asked) for each in costs.values())
    template_tokens = {name: each.read_tokens for name, each in costs.items()}
    assert template_tokens["none"] == template_tokens["state"] < template_tokens["oracle"] < template_tokens["base"]
    assert template_tokens["base"] == template_tokens["replay"]
    assert template_tokens["none"] <= template_tokens["chat"] < template_tokens["chat-30"]
    assert all(each.asked_seconds > 0 for each in costs.values())
    assert costs["base"].told_seconds == costs["none"].told_seconds == 0 < costs["state"].told_seconds


def test_a_history_of_one_message_and_none_at_all(vectors):
    base = questions(2, 1)
    asked = [replace(base[0], history=base[0].history[:1], evidence=()), replace(base[1], history=chat("My dog?")[:1])]
    asked[1] = replace(asked[1], evidence=(0,))
    for name in ("bm25", "dense", "oracle", "last", "last-3", "bm25+state"):
        assert len(replies(asked, name, vectors)) == 2
    assert replies(asked[:1], "bm25-1", vectors) == replies(asked[:1], "none", vectors)
