"""The command mlx_deltamem.evaluate, and the files in its folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapters.card.card import make_card
from mlx_deltamem.core.adapter import RESULTS_FILE
from mlx_deltamem.evaluate import setup_arg_parser
from mlx_deltamem.evaluation.report import REPORT_FILE
from mlx_deltamem.evaluation.run import RECORDS_FILE
from mlx_deltamem.evaluation.settings import SETTINGS_FILE
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone

CONDITIONS = ("base", "full", "state", "none", "zeroed", "shuffled")
SMALL = ("--recall-facts", 1, 2, "--recall-questions-each", 4, "--recall-filler", 0, 1, "--recall-max-tokens", 4)


def arguments(folder: Path, *more: object) -> list[str]:
    given = ["--model", backbone(), "--adapter", adapter(), "--tasks", "recall", "--output", folder, *SMALL, *more]
    return list(map(str, given))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("evaluation") / "new" / "run"
    result = run_command("evaluate", *arguments(folder))
    assert result.returncode == 0, result.stderr
    return folder, result


def results_of(folder: Path) -> dict:
    """The results without the costs, which depend on the clock."""
    results = json.loads((folder / RESULTS_FILE).read_text())
    del results["costs"]
    return results


@pytest.mark.slow
def test_what_is_left_in_the_folder(run):
    folder, result = run
    names = {path.name for path in folder.iterdir()}
    files = {"measures.jsonl", RECORDS_FILE, REPORT_FILE, RESULTS_FILE, SETTINGS_FILE}
    assert names in (files, files | {"recall.png", "recall-curves.png", "recall-bytes.png"})
    rows = [json.loads(line) for line in (folder / RECORDS_FILE).read_text().splitlines()]
    assert len(rows) == len(CONDITIONS) * 8
    assert "Recall of facts told in a chat: exact, in percent" in result.stdout
    assert f"The report is in {folder / REPORT_FILE}" in result.stdout
    assert "recall, state ..." in result.stderr


@pytest.mark.slow
def test_the_report(run):
    text = (run[0] / REPORT_FILE).read_text()
    assert text.startswith(f"# {adapter()} on {backbone()}\n")
    for condition in CONDITIONS:
        assert f"\n| {condition} | " in text
    for line in ("### exact by facts", "### Differences", "| zeroed − none | +0.0 (+0.0 to +0.0) | 0 % |", "| ‖S‖ |"):
        assert line in text
    widths = [{line.count("|") for line in part.splitlines()} for part in text.split("\n\n") if part.startswith("| ")]
    assert all(len(width) == 1 for width in widths)


@pytest.mark.slow
def test_the_results(run):
    results = results_of(run[0])
    whole = [row for row in results["results"] if row["task"] == "recall"]
    assert [(row["condition"], row["metric"]) for row in whole] == [
        (condition, metric) for metric in ("exact", "named") for condition in CONDITIONS
    ]
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in whole)
    assert {row["questions"] for row in whole} == {8}
    assert {row["task"] for row in results["results"]} >= {"recall, facts 1", "recall, facts 2"}
    assert ["zeroed", "none"] in [row["conditions"] for row in results["differences"]]


@pytest.mark.slow
def test_the_card_of_the_adapter_shows_the_results(run, tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "memory")
    (tmp_path / "memory" / RESULTS_FILE).write_bytes((run[0] / RESULTS_FILE).read_bytes())
    card = make_card(tmp_path / "memory", load_adapter(tmp_path / "memory")).text
    assert "| task | condition | metric | value | interval | questions |" in card
    assert re.search(r"\| recall \| state \| exact \| 0 \| 0 to \d[\d.]+ \| 8 \|", card)
    result = run_command(
        "upload", "--path", tmp_path / "memory", "--upload-repo", "anna/memory", "--license", "mit",
        "--base-model", "a/b", "--dry-run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert RESULTS_FILE in result.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_results(run, tmp_path):
    command = [sys.executable, "-m", "mlx_deltamem", "evaluate", *arguments(tmp_path / "killed", "--batch-size", 2)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    for lines in (1, 9):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_for_lines(tmp_path / "killed" / RECORDS_FILE, lines, process)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "killed" / RESULTS_FILE).exists()
    result = run_command("evaluate", *arguments(tmp_path / "killed", "--batch-size", 2))
    assert result.returncode == 0, result.stderr
    unbroken = run[0]
    assert (tmp_path / "killed" / RECORDS_FILE).read_bytes() == (unbroken / RECORDS_FILE).read_bytes()
    assert results_of(tmp_path / "killed") == results_of(unbroken)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


@pytest.mark.slow
def test_going_on_with_other_settings_is_refused(run):
    folder, _ = run
    before = (folder / RECORDS_FILE).read_bytes()
    for more, message in (
        (["--recall-facts", "1"], "has another recall question 'facts 1, chat 1, question 0'; use the same data and"),
        (["--write", "all"], "has another recall (write)"),
        (["--adapter", adapter("qwen3_msw4")], "has another adapter"),
    ):
        assert_refused(run_command("evaluate", *arguments(folder, *more)), message)
    assert (folder / RECORDS_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_limit_may_be_raised(run, tmp_path):
    unbroken, limited = run[0], tmp_path / "limited"
    for more in (["--limit", "4"], []):
        result = run_command("evaluate", *arguments(limited, "--batch-size", 2, *more))
        assert result.returncode == 0, result.stderr
        questions = {row["questions"] for row in results_of(limited)["results"] if row["task"] == "recall"}
        assert questions == {4 if more else 8}
    assert results_of(limited) == results_of(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "recall,chess"], "there is no task chess"),
        (["--conditions", "state,text"], "there is no condition text; expected base, "),
        (["--recall-facts", "1", "--recall-questions-each", "1"], "shuffled needs the memory of another history"),
        (["--recall-deletions", "0", "2"], "2 deletions of 1 facts"),
        (["--recall-keys", "wings"], "there is no key 'wings'"),
        (["--data", "mab=a.json"], "--data is of mab, which is not among --tasks"),
        (["--harness-shots", "0"], "none is among --tasks"),
        (["--locomo-mode", "replay"], "--locomo-mode is for the task locomo, which is not among --tasks"),
        (["--recall-natural", "--recall-hard"], "--recall-hard has no effect with --recall-natural"),
    ],
)
def test_what_cannot_be_asked_is_refused(more, message, tmp_path):
    assert_refused(run_command("evaluate", *arguments(tmp_path / "run", *more)), message)
    assert not (tmp_path / "run" / SETTINGS_FILE).exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--data", "recall=a.json"],
            "--data: 'recall=a.json' does not name the data of a task; expected TASK=PATH, with",
        ),
        (["--tasks", " ,"], "' ,' has no names; expected some, with commas between"),
        (["--batch-size", "0"], "--batch-size is 0; expected a whole number from 1 to 2**31 - 1"),
        (["--recall-filler", "1"], "expected 2 arguments"),
        (["--write", "yes"], "invalid choice"),
    ],
)
def test_options_that_do_not_exist(more, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        setup_arg_parser().parse_args(arguments(tmp_path, *more))
    assert message in capsys.readouterr().err


def test_names_may_have_spaces_between(tmp_path):
    given = setup_arg_parser().parse_args(arguments(tmp_path, "--tasks", "recall, mab,", "--conditions", "none, state"))
    assert (given.tasks, given.conditions) == (("recall", "mab"), ("none", "state"))


@pytest.mark.slow
def test_health_by_itself(tmp_path):
    given = ["--model", backbone(), "--adapter", adapter(), "--tasks", "health", "--limit", 2, "--output", tmp_path]
    result = run_command("evaluate", *map(str, given))
    assert result.returncode == 0, result.stderr
    assert "Perplexity of plain English ÷ the frozen model's" in result.stdout
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert (results["results"], results["settings"]["health"]["texts"]) == ([], 2)
    assert [each["memory"] for each in results["health"]["perplexity"]] == [
        "written",
        "carried_read",
        "carried_written",
    ]
    assert [sorted(each) for each in results["health"]["replies"]] == [["adapted", "equal", "frozen", "prompt"]] * 2
    report = (tmp_path / REPORT_FILE).read_text()
    assert "## What the adapter does to the model" in report and "## Conditions" not in report
    # Beside another task, in the same folder.
    result = run_command("evaluate", *arguments(tmp_path, "--tasks", "recall,health", "--conditions", "none"))
    assert result.returncode == 0, result.stderr
    again = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert again["settings"]["health"]["texts"] == 12 and again["results"]
    assert "## Conditions" in (tmp_path / REPORT_FILE).read_text()
    # The results of tasks that are not named again stay.
    result = run_command("evaluate", *arguments(tmp_path, "--tasks", "recall", "--conditions", "none"))
    assert "leaves out the earlier tasks of the folder (health)" in result.stdout, result.stderr
    assert results_of(tmp_path) == {name: each for name, each in again.items() if name != "costs"}
    assert "## What the adapter does to the model" not in (tmp_path / REPORT_FILE).read_text()


@pytest.mark.slow
def test_a_place_for_the_results_that_is_none_is_told_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    refused = run_command("evaluate", *arguments(tmp_path / "file", "--model", tmp_path / "none"))
    assert_refused(refused, "--output is the file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / REPORT_FILE).write_text("mine")
    refused = run_command("evaluate", *arguments(tmp_path / "notes", "--model", tmp_path / "none"))
    assert_refused(refused, "has no run and is not empty (report.md); name a new folder")
    assert (tmp_path / "notes" / REPORT_FILE).read_text() == "mine"


def test_help_tells_conditions_and_tasks():
    text = " ".join(setup_arg_parser().format_help().split())
    for part in ("the history in the memory only", "task recall", "--recall-questions-each", "(default: 1 2 4)"):
        assert part in text
