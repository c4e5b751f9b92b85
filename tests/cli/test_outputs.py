"""Commands with terminals, pipes and places that are not as usual, each in a new process."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load, load_adapter, save_adapter
from mlx_deltamem.cli.main import COMMANDS
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone

# Each test starts processes.
pytestmark = pytest.mark.slow

MODEL = ("--model", backbone(), "--adapter", adapter())
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\x9b31m\u202e\x7f[b]x[/no]"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J\\x1b]8;;http://a\\x1b\\link\\x1b]8;;\\x1b\\\\x9b31m\\u202e\\x7f[b]x[/no]"
SENT = set("\x00\x07\x1b\x7f\x9b\u202e")


def in_shell(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mlx_deltamem ARGUMENTS`, for which `COMMAND` stands in a script of bash."""
    words = shlex.join([sys.executable, "-m", "mlx_deltamem", *map(str, arguments)])
    return subprocess.run(
        ["bash", "-c", script.replace("COMMAND", words)],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        check=False,
    )


def turns(file: Path) -> list[tuple[str, str]]:
    chat = ChatSession.load(*load(backbone(), adapter=adapter()), file)
    return [(turn.text, turn.reply) for turn in chat.turns]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_any_terminal(command, encoding):
    result = in_shell("COMMAND", command, "--help", PYTHONIOENCODING=encoding, COLUMNS="0")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage:")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("COMMAND | head -c 15; exit ${PIPESTATUS[0]}", 141),
        ("COMMAND > /dev/full", 2),
        ("COMMAND >&- 2>&-", 0),
        ("COMMAND <&-", 0),
        ("PYTHONIOENCODING=ascii COMMAND", 0),
        ("LC_ALL=C COMMAND", 0),
        ("TERM=dumb COLUMNS=0 COMMAND", 0),
        ("HOME=/dev/null TMPDIR=/nowhere COMMAND", 0),
    ],
)
def test_a_turn_is_saved_whatever_the_terminal_does(script, code, tmp_path):
    usual, other = tmp_path / "usual.safetensors", tmp_path / "other.safetensors"
    prompts = ("--prompt", "Grüße, 你好 🦊!", "--prompt", "Two", "--max-tokens", 60)
    assert in_shell("COMMAND", "generate", *MODEL, *prompts, "--session", usual).returncode == 0
    result = in_shell(script, "generate", *MODEL, *prompts, "--session", other)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert turns(other) == turns(usual)


def test_a_chat_is_saved_when_its_output_is_closed(tmp_path):
    file = tmp_path / "chat.safetensors"
    script = "printf 'One\\nTwo\\n' | COMMAND | head -c 1500; exit ${PIPESTATUS[1]}"
    result = in_shell(script, "chat", *MODEL, "--max-tokens", 2000, "--session", file)
    assert (result.returncode, result.stderr) == (141, "")
    assert turns(file)


def test_nothing_from_files_is_sent_to_the_terminal(tmp_path):
    folder, file = tmp_path / EVIL.replace("/", ":"), tmp_path / "chat.safetensors"
    loaded = load_adapter(adapter())
    save_adapter(replace(loaded, metadata={**loaded.metadata, "note": EVIL}), folder)
    model, tokenizer = load(backbone(), adapter=adapter())
    model.backbone_name = EVIL
    chat = ChatSession(model, tokenizer, system=EVIL)
    chat.send(EVIL, 3)
    chat.save(file)
    for arguments in (
        ("inspect", folder),
        ("inspect", file, "--messages"),
        ("inspect", "diff", folder, adapter()),
        ("inspect", f"{folder}{EVIL}"),
        ("generate", "--model", folder, "--adapter", folder, "--prompt", "x"),
        ("convert", "--torch-path", folder, "--mlx-path", folder),
        ("upload", "--path", folder, "--upload-repo", "a/b", "--dry-run", "--base-model", "c/d", "--license", "mit"),
        (EVIL,),
    ):
        result = run_command(*arguments, COLUMNS="400")
        printed = result.stdout + result.stderr
        assert not SENT & set(printed), arguments
        assert "\\x1b]0;owned" in printed, arguments
    document = run_command("inspect", file, "--messages", "--json")
    assert not SENT & set(document.stdout) and "\\u007f" in document.stdout
    shown = run_command("chat", *MODEL, "--session", file, stdin=f"/messages\n/nothing{EVIL}\n", COLUMNS="400")
    assert not SENT & set(shown.stdout)
    assert shown.stdout.count(SHOWN) == 3


def test_ascii_terminals_have_no_other_signs(tmp_path):
    result = run_command(
        "chat", *MODEL, "--no-save", "--max-tokens", 6, stdin="Hello\n/memory\n", PYTHONIOENCODING="ascii"
    )
    assert result.returncode == 0, result.stderr
    assert "-scale #=-. +*%@ +scale" in result.stdout
    assert "\\u25" not in result.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x\udcff.safetensors", "is not UTF-8"),
        ("pipe.safetensors", "is a pipe; expected a file"),
        ("folder.safetensors", "is a folder; expected a file"),
        (f"{'x' * 240}.safetensors", "cannot be written"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_file_that_cannot_be_saved_is_refused_before_the_model_is_loaded(command, name, message, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    more = ("--prompt", "x") if command == "generate" else ()
    result = run_command(command, "--model", "nowhere", "--adapter", "nowhere", *more, "--session", tmp_path / name)
    assert_refused(result, message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_closed_standard_input():
    for arguments in (
        ("generate", *MODEL, "--prompt", "-"),
        ("generate", *MODEL, "--remember", "-"),
        ("chat", *MODEL, "--no-save"),
    ):
        assert_refused(in_shell("COMMAND <&-", *arguments), "standard input is closed")


@pytest.mark.parametrize("mode", [(), ("--ignore-chat-template",)])
def test_a_very_long_prompt(mode):
    result = run_command("generate", *MODEL, "--prompt", "-", *mode, stdin="hello there. " * 154_000)
    assert_refused(result, "the prompt is more than 4,096 tokens (2,002,000 characters)")
    assert len(result.stderr.splitlines()) == 1
