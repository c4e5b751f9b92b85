"""Commands on several ranks: one voice, the results of one process, and what happens when a rank is killed."""

import json
import signal
import time
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from tests.command_line import run_command
from tests.ranks.launched import Ranks, assert_one_line_names, run_ranks
from tests.training.command import tiny_options
from tests.training.runs import write_chats

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.usefixtures("ctrl_c")]
_COMMAND = "mlx_deltamem"
# A model that replies until it is stopped.
_ENDLESS = 100_000
_QUESTIONS = ("--tasks", "recall", "--recall-filler", 0, 0, "--recall-facts", 1, "--recall-questions-each", 4)


def test_ranks_reply_as_one_process_and_one_of_them_prints(options, tmp_path):
    asked = ["--prompt", "Hello", "--prompt", "And you?", "-m", 8, "--verbose", "False"]
    alone = run_command("generate", *options, *asked, "--session", tmp_path / "alone.safetensors")
    ranks = run_ranks(2, _COMMAND, "generate", *options, *asked, "--session", tmp_path / "ranks.safetensors")
    assert [(each.code, each.out, each.err) for each in ranks] == [(0, alone.stdout, ""), (0, "", "")]
    loaded = load(options[1], adapter=options[3])
    chats = [ChatSession.load(*loaded, tmp_path / f"{name}.safetensors") for name in ("alone", "ranks")]
    assert chats[0].messages == chats[1].messages


def test_sampled_tokens_are_those_of_the_first_rank(options):
    """Without a seed each rank draws other random numbers."""
    asked = ["--prompt", "Hello", "-m", 8, "--temp", 1.0, "--verbose", "False"]
    first, second = run_ranks(2, _COMMAND, "generate", *options, *asked)
    assert (first.code, second.code, first.err + second.err + second.out) == (0, 0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--prompt", "x", "--pipeline"), "mlx-lm has no --pipeline: leave --pipeline out"),
        (("generate", "--prompt", "x", "--session", "/none/x.safetensors"), "/none"),
    ],
)
def test_an_error_is_printed_once(options, arguments, message):
    command, *rest = arguments
    first, second = run_ranks(2, _COMMAND, command, *options, *rest)
    assert (first.code, second.code) == (2, 2)
    assert message in first.err and first.err.count("error: ") == 1
    assert second.err == second.out == ""


def test_heads_that_cannot_be_dealt_out_are_refused(options):
    ranks = run_ranks(4, _COMMAND, "generate", *options, "--prompt", "x")
    assert "6 key-value heads, which cannot be dealt out to 4 ranks" in ranks[0].err
    assert [each.code for each in ranks] == [2] * 4


def test_the_first_rank_alone_runs_other_commands(options):
    first, second = run_ranks(2, _COMMAND, "inspect", options[3])
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", "")
    assert "rank" in first.out


def test_a_chat_is_typed_into_the_first_rank(options, tmp_path):
    typed = "Hello\n/remember Anna has a dog.\n/nonsense\n/undo\n/retry\n/memory\n/quit\n"
    file = tmp_path / "chat.safetensors"
    first, second = run_ranks(2, _COMMAND, "chat", *options, "-m", 6, "--session", file, stdin=typed)
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", "")
    assert "remembered" in first.out and "there is no command /nonsense" in first.out
    chat = ChatSession.load(*load(options[1], adapter=options[3]), file)
    assert chat.messages[0]["content"] == "Hello"


def test_ctrl_c_ends_a_reply_at_the_same_token_in_all_ranks(options, tmp_path):
    file = tmp_path / "chat.safetensors"
    ranks = Ranks(2, _COMMAND, "chat", *options, "-m", _ENDLESS, "--session", file)
    ranks.processes[0].write("Hello\n")
    ranks.read_until("/help lists the commands")
    time.sleep(3)
    for process in ranks.processes:
        process.send_signal(signal.SIGINT)
    first, second = ranks.wait("/quit\n")
    assert (first.code, second.code, second.out + second.err) == (0, 0, "")
    chat = ChatSession.load(*load(options[1], adapter=options[3]), file)
    assert len(chat.turns) <= 1


def test_ctrl_c_ends_all_ranks(options):
    ranks = Ranks(2, _COMMAND, "generate", *options, "--prompt", "Hello", "-m", _ENDLESS)
    ranks.read_until("=====")
    for process in ranks.processes:
        process.send_signal(signal.SIGINT)
    assert [(each.code, each.err) for each in ranks.wait()] == [(130, "")] * 2


@pytest.mark.parametrize(("count", "killed"), [(2, 0), (2, 1), (3, 2)])
def test_a_killed_rank_ends_a_reply(options, tmp_path, count, killed):
    file = tmp_path / "chat.safetensors"
    run_command("generate", *options, "--prompt", "Hello", "-m", 4, "--session", file)
    before = file.read_bytes()
    ranks = Ranks(count, _COMMAND, "generate", *options, "--prompt", "On", "-m", _ENDLESS, "--session", file)
    ranks.read_until("=====")
    ranks.processes[killed].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ended = ranks.wait()
    assert time.monotonic() - begun < 30
    assert_one_line_names(killed, [each for rank, each in enumerate(ended) if rank != killed])
    assert file.read_bytes() == before
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == [file]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_a_chat(options, killed):
    ranks = Ranks(2, _COMMAND, "chat", *options, "-m", _ENDLESS, "--no-save")
    ranks.processes[0].write("Hello\n")
    ranks.read_until("/help lists the commands")
    ranks.processes[killed].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ended = ranks.wait()
    assert time.monotonic() - begun < 30
    assert_one_line_names(killed, [ended[1 - killed]])


def records(folder: Path) -> dict[tuple[str, str], dict]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    found = {(row["condition"], row["id"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_an_evaluation_is_that_of_one_process(options, tmp_path):
    """Also begun by 3 ranks and completed by 2, and with one model in two ranks together."""
    asked = [*_QUESTIONS, "--conditions", "state,chat,shuffled", "--reply-tokens", 6, "--batch-size", 2, "--limit"]
    assert run_command("evaluate", *options, *asked, 3, "--output", tmp_path / "alone").returncode == 0
    runs = [(3, 2, "dealt", ()), (2, 3, "dealt", ()), (2, 3, "together", ("--shard",))]
    for count, limit, name, more in runs:
        ranks = run_ranks(count, _COMMAND, "evaluate", *options, *asked, limit, "--output", tmp_path / name, *more)
        assert [(each.code, each.out) for each in ranks[1:]] == [(0, "")] * (count - 1), ranks
        assert ranks[0].code == 0, ranks[0].err
    assert records(tmp_path / "dealt") == records(tmp_path / "together") == records(tmp_path / "alone")


def test_a_killed_rank_ends_an_evaluation_that_can_go_on(options, tmp_path):
    asked = [*_QUESTIONS, "--conditions", "chat", "--limit", 16, "--reply-tokens", 16, "--batch-size", 1]
    ranks = Ranks(2, _COMMAND, "evaluate", *options, *asked, "--output", tmp_path / "run")
    file = tmp_path / "run" / "records.jsonl"
    while not (file.exists() and file.stat().st_size):
        assert not ranks.processes[0].has_ended
        time.sleep(0.05)
    ranks.processes[1].send_signal(signal.SIGKILL)
    assert_one_line_names(1, ranks.wait()[:1])
    there = records(tmp_path / "run")
    assert run_command("evaluate", *options, *asked, "--output", tmp_path / "run").returncode == 0
    complete = records(tmp_path / "run")
    assert there.items() <= complete.items() and len(complete) > len(there)


def test_a_killed_rank_ends_a_training_that_can_be_resumed(tmp_path):
    data, folder = write_chats(tmp_path / "chats"), tmp_path / "run"
    given = tiny_options(data, iters=_ENDLESS, **{"save-every": 1, "steps-per-report": 1})
    ranks = Ranks(2, _COMMAND, "train", *given, "--adapter-path", folder)
    while not list((folder / "checkpoints").glob("0*.safetensors")):
        assert not ranks.processes[0].has_ended
        time.sleep(0.05)
    ranks.processes[1].send_signal(signal.SIGKILL)
    assert_one_line_names(1, ranks.wait()[:1])
    for checkpoint in (folder / "checkpoints").glob("0*.safetensors"):
        assert checkpoint.stat().st_size


def test_a_benchmark_measures_the_model_of_all_ranks(options, tmp_path):
    """Rank 0 alone prints and draws. The model of a rank is a part of the whole one."""
    asked = [*options, "--prompt-tokens", 9, "-g", 2, "--num-trials", 3]
    alone = run_command("benchmark", *asked, "--json")
    figure = tmp_path / "benchmark.svg"
    first, second = run_ranks(2, _COMMAND, "benchmark", *asked, "--batch-size", 2, "--json", "--plot", figure)
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", ""), first.err
    whole, part = json.loads(alone.stdout), json.loads(first.out)
    assert part["machine"].endswith(", rank 0 of 2") and figure.exists()
    assert [each["phase"] for each in part["comparisons"]] == ["prefill", "decode"]
    assert part["subject"]["model_bytes"] < whole["subject"]["model_bytes"]
    assert part["subject"]["state_bytes"] == whole["subject"]["state_bytes"]


def test_a_model_of_random_weights_is_not_spread():
    first, second = run_ranks(2, _COMMAND, "benchmark", "--shape", "qwen3-0.6b")
    assert (first.code, second.code, second.out + second.err) == (2, 2, "")
    assert "error: --shape makes a whole model in one process" in first.err
