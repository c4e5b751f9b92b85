"""Tests that run tasks are skipped where lm-eval (of the extra `evaluate`) is not installed."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

from mlx_deltamem import load
from mlx_deltamem.core.adapter import RESULTS_FILE
from mlx_deltamem.evaluation.report import REPORT_FILE
from mlx_deltamem.evaluation.run import RECORDS_FILE
from mlx_deltamem.evaluation.tasks.harness import (
    HarnessOptions,
    HarnessTask,
    check_harness_tasks,
    run_harness_task,
    task_manager,
)
from mlx_deltamem.evaluation.tasks.harness_results import HarnessResult, HarnessSample, harness_records
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone, randomise
from tests.evaluation.test_published import HARNESS

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

ROWS = [
    {"question": "What does Mia keep?", "choices": ["bees", "cats", "two old dogs"], "answer": 0},
    {"question": "What does Tom, who lives in Oslo, repair?", "choices": ["clocks", "a boat"], "answer": 1},
    {"question": "Who is Ada?", "choices": ["a cook", "nobody"], "answer": 1},
]
_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
num_fewshot: 0
metadata:
  version: 1.0
"""
_CHOICE = """
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""
_REPLY = """
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
filter_list:
  - name: whole
    filter: [{function: take_first}]
  - name: first-word
    filter: [{function: regex, regex_pattern: "(\\\\S+)"}, {function: take_first}]
metric_list:
  - metric: exact_match
"""
_TEXT = """
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
"""
_GUESS = """
doc_to_target: " {{choices[answer]}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with small tasks, one of each kind of request."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, kind, text, rest in (
        ("tiny_choice", "multiple_choice", "{{question}}", _CHOICE),
        ("tiny_reply", "generate_until", "{{question}}", _REPLY),
        ("tiny_text", "loglikelihood_rolling", "", _TEXT),
        ("tiny_guess", "loglikelihood", "{{question}}", _GUESS),
    ):
        head = _TASK.format(name=name, rows=rows, kind=kind, text=text)
        (folder / f"{name}.yaml").write_text(head + rest)
    return folder


@pytest.fixture
def loaded():
    """A tiny model with a memory that changes its replies."""
    model, tokenizer = load(backbone(), adapter=adapter())
    randomise(model, 0.5)
    return model, tokenizer


def run(loaded, tasks, name, condition="full", **options):
    return run_harness_task(*loaded, name, condition, HarnessOptions(include=tasks, **options))


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_choice", "tiny_reply", "tiny_text"])
def test_a_memory_begins_anew_for_each_request(loaded, tasks, name):
    together = run(loaded, tasks, name, batch_size=1)
    assert together.questions == len(together.samples) == len(ROWS)
    assert [sample.id for sample in together.samples] == [0, 1, 2]
    # Alone, nothing can have been left by others.
    rows = tasks / "rows.jsonl"
    whole = rows.read_text()
    try:
        for index, row in enumerate(ROWS):
            rows.write_text(json.dumps(row) + "\n")
            (alone,) = run(loaded, tasks, name, batch_size=1).samples
            assert alone.replies == together.samples[index].replies
    finally:
        rows.write_text(whole)
    assert run(loaded, tasks, name, batch_size=1) == together


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_choice", "tiny_reply", "tiny_text"])
def test_base_is_the_frozen_backbone_and_full_is_not(loaded, tasks, name):
    base, full = run(loaded, tasks, name, "base"), run(loaded, tasks, name)
    assert (base.condition, full.condition) == ("base", "full")
    assert any(one.replies != other.replies for one, other in zip(base.samples, full.samples, strict=True))
    # Without weights, an adapter corrects nothing.
    randomise(loaded[0], 0.0)
    assert run(loaded, tasks, name).samples == base.samples


@needs_harness
@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it ran for more than"),
        ("{{ 'x' * 100000000 }}", "it makes more than"),
        ("{{ raise_exception('no') }}", "refuses 1 message"),
        ("{{ messages.a.b }}", "UndefinedError"),
    ],
)
def test_a_template_has_the_limits_of_chats(loaded, template, problem):
    model, tokenizer = loaded
    tokenizer.chat_template = template
    lm = importlib.import_module("mlx_deltamem.evaluation.tasks.harness_model").MemoryLM(model, tokenizer, True, 1)
    with pytest.raises(ValueError, match=problem):
        lm.apply_chat_template([{"role": "user", "content": "Hi"}])


@needs_harness
def test_requests_are_written_as_mlx_lm_writes_them(loaded):
    module = importlib.import_module("mlx_deltamem.evaluation.tasks.harness_model")
    lm = module.MemoryLM(*loaded, True, 1)
    expected = importlib.import_module("mlx_lm.evaluate").chat_template_fn(enable_thinking=False)
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "The answer is "}]
    assert lm.apply_chat_template(chat[:1]) == expected(lm, chat[:1])
    assert lm.apply_chat_template(chat, False) == expected(lm, chat, False)


@needs_harness
@pytest.mark.slow
def test_scores_are_the_harness_s_own(loaded, tasks):
    choice = run(loaded, tasks, "tiny_choice")
    assert choice.scores == {"acc": pytest.approx(sum(s.scores["acc"] for s in choice.samples) / 3)}
    assert [sample.gold for sample in choice.samples] == ["0", "1", "1"]
    reply = run(loaded, tasks, "tiny_reply")
    assert set(reply.scores) == {"exact_match,whole", "exact_match,first-word"}
    assert all(set(sample.scores) == set(reply.scores) for sample in reply.samples)
    assert [sample.gold for sample in reply.samples] == ["bees", "a boat", "nobody"]
    assert run(loaded, tasks, "tiny_text").scores["word_perplexity"] > 1
    assert run(loaded, tasks, "tiny_reply", limit=2).questions == 2
    assert HarnessTask(reply.task).differences and not HarnessTask(reply.task).published


@needs_harness
@pytest.mark.slow
def test_what_has_no_mean_is_no_score_of_a_question(loaded, tasks):
    guess = run(loaded, tasks, "tiny_guess")
    assert set(guess.scores) == {"perplexity", "acc"} and guess.scores["perplexity"] > 1
    assert [set(sample.scores) for sample in guess.samples] == [{"acc"}] * 3


@needs_harness
@pytest.mark.slow
def test_several_side_by_side_are_as_one_by_one(loaded, tasks):
    for name in ("tiny_choice", "tiny_reply"):
        assert run(loaded, tasks, name, batch_size=3).scores == run(loaded, tasks, name, batch_size=1).scores
    one, three = (run(loaded, tasks, "tiny_text", batch_size=size).scores["word_perplexity"] for size in (1, 3))
    assert three == pytest.approx(one, rel=1e-4)


@needs_harness
@pytest.mark.slow
def test_names_are_checked(tasks, tmp_path):
    check_harness_tasks(["ifeval", "gpqa_diamond", "gsm8k", "mmlu", "tiny_reply"], tasks)
    with pytest.raises(
        ValueError, match=r"there is no task ifevall, here or in lm-evaluation-harness; there are ifeval"
    ):
        check_harness_tasks(["ifevall"])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_harness_tasks(["ifeval"], tmp_path / "none")
    check_harness_tasks(HARNESS)


@needs_harness
@pytest.mark.slow
def test_errors_are_told_in_one_line(loaded, tasks):
    with pytest.raises(ValueError, match="there is no condition state for tasks of the harness"):
        run(loaded, tasks, "tiny_reply", "state")
    broken = tasks / "tiny_broken.yaml"
    broken.write_text(
        _TASK.format(name="tiny_broken", rows=tasks / "none.jsonl", kind="generate_until", text="x") + _REPLY
    )
    task_manager.cache_clear()
    with pytest.raises(FileNotFoundError, match="cannot read the data of tiny_broken") as told:
        run(loaded, tasks, "tiny_broken")
    assert "\n" not in str(told.value)
    broken.unlink()


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    task_manager.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package lm_eval.*pip install 'mlx-deltamem\[evaluate\]'"):
        check_harness_tasks(["ifeval"])


def test_options_that_decide_the_results_are_settings():
    given = {"limit": 3, "shots": 2, "max_tokens": 9, "include": Path("mine")}
    different = [HarnessOptions(**{name: value}).settings for name, value in given.items()]
    assert all(settings != HarnessOptions().settings for settings in different)
    assert HarnessOptions(batch_size=3).settings == HarnessOptions().settings


def test_a_task_without_questions_is_refused():
    with pytest.raises(ValueError, match="empty has no score for each of its 0 questions"):
        harness_records(HarnessResult("empty", "base", {}, 0, ()), ())


def test_members_of_a_group_share_their_metrics_and_the_published_one_comes_first():
    samples = [
        HarnessSample("one", 0, "x", ("y", "z"), {"own": 0.5, "also": 0.0, "prompt_level_strict_acc": 1.0}),
        HarnessSample("two", 0, "x", ("y",), {"also": 1.0, "prompt_level_strict_acc": 0.0}),
    ]
    rows = harness_records(HarnessResult("ifeval", "full", {}, 2, tuple(samples)), ["prompt_level_strict_acc"])
    assert [list(row["scores"].items()) for row in rows] == [
        [("prompt_level_strict_acc", 1.0), ("also", 0.0)],
        [("prompt_level_strict_acc", 0.0), ("also", 1.0)],
    ]
    assert [(row["id"], row["group"], row["category"]) for row in rows] == [
        ("one/0", "one/0", "one"),
        ("two/0", "two/0", "two"),
    ]
    assert rows[0]["reply"] == "y\nz" and rows[0]["golds"] == ["x"] and rows[1]["questions"] == 2


def command(tasks, folder, *more):
    given = ["--model", backbone(), "--adapter", adapter(), "--tasks", "tiny_choice,tiny_reply", "--output", folder]
    return run_command("evaluate", *given, "--harness-include", tasks, *more)


@needs_harness
def test_the_command_asks_tasks_of_the_harness(tasks, tmp_path):
    result = command(tasks, tmp_path / "run", "--conditions", "base,state,full")
    assert result.returncode == 0, result.stderr
    records = (tmp_path / "run" / RECORDS_FILE).read_bytes()
    rows = [json.loads(line) for line in records.splitlines()]
    found = [(row["task"], row["condition"], row["id"]) for row in rows]
    assert found == [
        (task, condition, f"{task}/{index}")
        for task in ("tiny_choice", "tiny_reply")
        for condition in ("base", "full")
        for index in range(3)
    ]
    report = (tmp_path / "run" / REPORT_FILE).read_text()
    assert "## tiny_reply (lm-evaluation-harness)" in report and "- Adapters that write means of messages" in report
    results = json.loads((tmp_path / "run" / RESULTS_FILE).read_text())["results"]
    assert {(row["task"], row["metric"]) for row in results} >= {("tiny_choice", "acc")}
    # Cut off within the third of four: that one and the last are asked again, and nothing is there twice.
    (tmp_path / "run" / RECORDS_FILE).write_bytes(records[: records.index(b"\n", len(records) * 5 // 8) + 20])
    assert command(tasks, tmp_path / "run", "--conditions", "base,full").returncode == 0
    assert (tmp_path / "run" / RECORDS_FILE).read_bytes() == records


@needs_harness
def test_the_command_refuses_what_the_harness_cannot_do(tasks, tmp_path):
    assert_refused(command(tasks, tmp_path, "--conditions", "state"), "can be asked under base and full only")
    assert_refused(
        command(tasks, tmp_path, "--tasks", "tiny_choise"), "there is no task tiny_choise, here or in lm-eval"
    )
    # Its perplexity is of all questions together.
    without = command(tasks, tmp_path, "--tasks", "tiny_text")
    assert_refused(without, "tiny_text has no score for each of its 3 questions (in all: {'word_perplexity': ")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_the_command_tells_how_to_have_the_harness(tasks, tmp_path):
    result = command(tasks, tmp_path)
    assert_refused(result, "there is no task tiny_choice, tiny_reply; there are ")
    assert "pip install 'mlx-deltamem[evaluate]'" in result.stderr
