"""The terminal chat, through a real terminal."""

import codecs
import os
import re
import readline
import select
import shutil
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.chat_commands import HELP
from mlx_deltamem.sessions.comparison import compare
from tests.command_line import run_command
from tests.conftest import adapter, backbone

if sys.platform == "win32":
    pytest.skip("it has no such terminals", allow_module_level=True)

# Each test starts a process, which takes a second or two.
pytestmark = pytest.mark.slow

PROMPT = "› "
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
# Seconds; the slowest wait is for a process that loads a model while others run.
PATIENCE = 60.0
# The terminal becomes the controlling terminal of the program, so that Ctrl-C reaches it.
PROGRAM = "import os, runpy; os.login_tty(0); runpy.run_module('mlx_deltamem.chat', run_name='__main__')"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
TINY = ["--model", backbone(), "--adapter", adapter()]
# Without it, a chat of a test would be kept among those of the one who runs the test.
UNKEPT = "--no-save"


class Terminal:
    """A terminal in which the chat runs.

    Args:
        arguments: Its command line, without the model. The chat is not kept unless they name a folder or a file.

    Attributes:
        output: What was shown since the last line was typed, without colours.
    """

    def __init__(self, *arguments: object):
        unkept = () if {"--chats", "--session"} & set(arguments) else (UNKEPT,)
        self._terminal, theirs = os.openpty()
        # Wide, so that no message is broken into lines.
        termios.tcsetwinsize(theirs, (50, 250))
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "INPUTRC")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *TINY, *map(str, arguments), *unkept],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"},
        )
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = ""
        self.wait_for_prompt()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)

    @property
    def output(self) -> str:
        return ESCAPES.sub("", self._raw).replace("\r", "")

    def type(self, keys: str) -> None:
        """Type without waiting for the answer."""
        self._raw = ""
        os.write(self._terminal, keys.encode())

    def say(self, line: str) -> str:
        """Type a line and wait until the chat is ready for the next; returns the output in between."""
        self.type(line + "\r")
        return self.wait_for_prompt()

    def say_lines(self, *lines: str) -> str:
        """Type a message of several lines."""
        for line in lines[:-1]:
            self.type(line + "\r")
            self.wait(lambda: self.output.endswith("… "), "the prompt for another line")
        return self.say(lines[-1])

    def wait_for_prompt(self) -> str:
        self.wait(lambda: self.output.endswith(PROMPT), "the prompt")
        return self.output

    def wait(self, done: Callable[[], object], what: str) -> None:
        """Read until `done()`; fails if that takes too long."""
        assert self._is_soon(done, PATIENCE), f"{what} did not come after {self.output!r}"

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C at the prompt, again if need be, until the chat answers.

        Python overlooks a signal that comes when the prompt is there but the wait for a key has not begun.
        """
        self._raw = ""
        end = time.monotonic() + PATIENCE
        while "(/quit or Ctrl-D leaves)" not in self.output:
            assert time.monotonic() < end, "Ctrl-C has no effect"
            os.write(self._terminal, CTRL_C.encode())
            self._is_soon(lambda: "(/quit or Ctrl-D leaves)" in self.output, 1.0)
        # The output of one Ctrl-C too many comes before the answer to this command.
        self.wait_for_prompt()
        self.type("/fork 0\r")
        self.wait(lambda: "there is no copy 0" in self.output and self.output.endswith(PROMPT), "an answer")

    def leave(self, keys: str = CTRL_D) -> tuple[int, str]:
        """Leave; returns the exit code and the output."""
        self.type(keys)
        while self._read():
            pass
        return self.process.wait(PATIENCE), self.output

    def messages(self) -> list[str]:
        """The lines that /messages prints, one for each message."""
        return [line for line in self.say("/messages").splitlines() if re.match(r"\d+ \w+:", line)]

    def _is_soon(self, done: Callable[[], object], seconds: float) -> bool:
        """Read until `done()`, or until the time is over; returns whether it was `done()`."""
        end = time.monotonic() + seconds
        while not done():
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return False
            assert self._read(), f"the chat ended after {self.output!r}"
        return True

    def _read(self) -> bool:
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            # Linux raises this when no process has the other side open.
            return False
        self._raw += self._decoder.decode(data)
        return bool(data)


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    with Terminal("--max-tokens", 6, "--system", "Be brief.") as terminal:
        yield terminal


@pytest.fixture
def empty(terminal: Terminal) -> Terminal:
    """The terminal with an empty chat."""
    assert "forgotten" in terminal.say("/reset")
    assert terminal.messages() == ["0 system: Be brief."]
    return terminal


@pytest.fixture
def told(empty: Terminal) -> Terminal:
    """The terminal with one turn."""
    assert "6 tokens" in empty.say("My word is jade.")
    return empty


def replies(*texts: str, system: str | None = "Be brief.") -> list[str]:
    """The replies of the model to some messages."""
    chat = ChatSession(*load(backbone(), adapter=adapter()), system=system)
    return [chat.send(text, 6) for text in texts]


def test_a_reply_is_the_models(empty):
    first, second = replies("Hello there.", "Grüße, 你好 🦊!")
    assert f"\n{first}\n6 tokens" in drawn(empty.say("Hello there."))
    assert f"\n{second}\n6 tokens" in drawn(empty.say("Grüße, 你好 🦊!"))
    assert empty.messages() == [
        "0 system: Be brief.",
        "1 user: Hello there.",
        f"2 assistant: {first}",
        "3 user: Grüße, 你好 🦊!",
        f"4 assistant: {second}",
    ]


def drawn(output: str) -> str:
    """The output without the spinner that ran before a reply."""
    return re.sub(r"[\u2800-\u28ff] *\n?", "", output)


def test_help_names_every_command(terminal):
    shown = terminal.say("/help")
    assert all(line in shown for line in HELP.splitlines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "there is no command /nonsense; /help lists them"),
        ("/undo now", "/undo takes nothing after it, but got 'now'"),
        ("/reset 1", "/reset takes nothing after it"),
        ("/edit", "/edit got ''; expected the number of a message"),
        ("/edit x y", "/edit got 'x y'; expected the number"),
        ("/edit ² y", "/edit got '² y'; expected the number"),
        (f"/edit {'9' * 3000} y", "/edit got '9999"),
        ("/edit 9 y", "there is no message 9; the chat has 3"),
        ("/edit 1", "the message is empty"),
        ("/fork 99", "there is no copy 99"),
        (f"/fork {'9' * 3000}", "there is no copy 9999"),
        ("/fork -1", "there is no copy -1"),
        ("/fork ²", "there is no copy ²"),
        ("/load", "/load needs a file name"),
        ("/load nowhere.safetensors", "there is no session file"),
        ("/save", "/save needs a file name; this chat has none yet"),
        ("/new now", "/new takes nothing after it"),
        ("/branch", "/branch got ''; expected the number of a reply"),
        ("/branch ²", "/branch got '²'; expected the number of a reply"),
        (f"/branch {'9' * 3000}", "/branch got '9999"),
        ("/branch 1", "message 1 is not a reply; expected the number of a message of the assistant"),
        ("/branch 9", "there is no message 9; the chat has 3"),
        (f"/name {'x' * 201}", "the title has 201 characters in 1 lines; expected one line"),
        ("/export", "/export got ''; expected a file name that ends in .json or .md"),
        ("/export a.txt", "/export got 'a.txt'; expected"),
        ("/export /nowhere/at/all.md", "/nowhere/at/all.md cannot be written"),
        ("/import nowhere.json", "there is no file nowhere.json; check the name"),
        ("/import nowhere.md", "there is no file nowhere.md; check the name"),
        ("/save notes.txt", "does not end in .safetensors"),
        ("/save /nowhere/at/all.safetensors", "there is no folder /nowhere/at to save a session in"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changes(told, line, message):
    before = told.messages()
    assert re.search(f"\nerror: .*{re.escape(message)}", told.say(line))
    assert told.messages() == before


def test_an_empty_chat_has_nothing_to_take_back(empty):
    assert "error: there is no turn to take back" in empty.say("/undo")
    assert "error: there is no turn to regenerate" in empty.say("/retry")
    assert "error" not in empty.say("")


def test_the_commands_of_mlx_lm_chat(told):
    assert "/undo  " in told.say("h")
    assert "forgotten" in told.say(" r ")
    assert told.messages() == ["0 system: Be brief."]
    with Terminal("--max-tokens", 6) as other:
        code, _ = other.leave("q\r")
        assert code == 0
    # Between three quotes, and with other words, they are messages.
    told.say_lines('"""', "q", '"""')
    told.say("r you there?")
    assert [line for line in told.messages() if "user" in line] == ["1 user: q", "3 user: r you there?"]


def test_undo(told):
    told.say("Another.")
    assert "took back: Another." in told.say("/undo")
    assert [line.split(":")[0] for line in told.messages()] == ["0 system", "1 user", "2 assistant"]


def test_retry_gives_the_likeliest_reply_again(told):
    before = told.messages()
    assert "6 tokens" in told.say("/retry")
    assert told.messages() == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_edit(told, number):
    before = told.messages()
    assert f"changed message {number}" in told.say(f"/edit {number} [bold] is no markup")
    after = told.messages()
    assert after[number].endswith(": [bold] is no markup")
    assert [*after[:number], *after[number + 1 :]] == [*before[:number], *before[number + 1 :]]
    told.say("/edit 0 Be brief.")


def test_a_reply_after_edits_is_that_of_a_chat_that_was_always_so(told):
    told.say("/edit 1 My word is opal.")
    told.say("/retry")
    assert told.messages()[-1] == f"2 assistant: {replies('My word is opal.')[0]}"


def test_a_read_only_memory_does_not_move(told):
    assert "moved    100%" in told.say("/memory")
    assert "the memory is read only\nread only› " in told.say("/readonly")
    told.say("Not for keeps.")
    shown = told.say("/memory")
    assert "moved      0%" in shown
    assert "nothing was forgotten" in shown
    assert "the memory is written again" in told.say("/readonly")
    told.say("For keeps.")
    assert "moved      0%" not in told.say("/memory")


def test_what_is_written_and_what_is_seen_can_be_changed(told):
    assert "written into the memory: all (every token as it is read)" in told.say("/write")
    assert "written into the memory: user (the user's messages only)\nwrite user› " in told.say("/write user")
    assert "write is 'some'; expected one of all, after" in told.say("/write some")
    assert "the memory is read only\nread only› " in told.say("/readonly")
    assert "the memory is written again: user" in told.say("/readonly")
    assert "seen of earlier turns, beside the memory: full (all of their text)" in told.say("/history")
    assert "beside the memory: 64 (their last 64 tokens)" in told.say("/history 64")
    assert "expected 'full', 'none' or a number" in told.say("/history some")
    assert "6 tokens" in told.say("And now?")
    assert "written into the memory: all" in told.say("/write all")
    assert "beside the memory: full" in told.say("/history full")


def test_a_text_or_a_file_is_remembered(told, tmp_path):
    notes, chat = tmp_path / "notes.txt", tmp_path / "chat.json"
    notes.write_text("The key is under the blue pot.\n" * 3)
    chat.write_text('[{"role": "user", "content": "I like figs."}, {"role": "assistant", "content": "Noted."}]')
    for given, shown in ((notes, "The key is under"), (chat, "I like figs."), ("It rains [b]here[/b].", "[b]here[/b]")):
        assert re.search(r"remembered [\d,]+ tokens; /undo takes it back", told.say(f"/remember {given}"))
        listed = told.say("/messages")
        assert "remembered:" in listed and shown in listed
        assert "took back: " in told.say("/undo")
    assert "remembered:" not in told.say("/messages")
    assert len(told.messages()) == 3
    chat.write_text("{")
    assert "has no messages" in told.say(f"/remember {chat}")
    assert "/remember needs a file name, or a text" in told.say("/remember")


def test_a_question_is_asked_with_the_memory_and_without(told):
    model, tokenizer = load(backbone(), adapter=adapter())
    chat = ChatSession(model, tokenizer, system="Be brief.")
    chat.send("My word is jade.", 6)
    shown = told.say("/compare What is it?")
    for reply in compare(chat, "What is it?", max_tokens=6).values():
        assert reply.strip() in shown
    assert "with the memory" in shown and "without it" in shown
    assert len(told.messages()) == 3
    assert "/compare needs a question" in told.say("/compare")


def test_the_memory_is_drawn_in_colours(told):
    shown = told.say("/memory")
    assert shown.count("▀" * 8) == 12
    assert "\x1b[38;" in told._raw
    assert "+scale" in shown


def test_a_message_of_several_lines(empty):
    for lines in (('"""', "one", "/two", '"""'), ("one\\", "/two")):
        assert "6 tokens" in empty.say_lines(*lines)
        assert "took back: one\n/two\n" in empty.say("/undo")
    assert "6 tokens" in empty.say_lines('"""', "/etc/fstab is a file", '"""')
    assert "took back: /etc/fstab is a file" in empty.say("/undo")
    assert "the message is empty; it was not sent" in empty.say_lines('"""', " ", '"""')


@pytest.mark.skipif("libedit" in (readline.__doc__ or ""), reason="it takes pasted lines for lines that were typed")
def test_pasted_lines_are_one_message(empty):
    assert "6 tokens" in empty.say("\x1b[200~one\ntwo\x1b[201~")
    assert "took back: one\ntwo\n" in empty.say("/undo")


def test_line_history(told):
    told.type(UP)
    told.wait(lambda: "My word is jade." in told.output, "the last line")
    told.say(" Yes.")
    assert told.messages()[3] == "3 user: My word is jade. Yes."


def test_ctrl_c_at_the_prompt(told):
    before = told.messages()
    for _ in range(3):
        told.press_ctrl_c()
    told.type("half a message")
    told.wait(lambda: "half a message" in told.output, "the echo")
    told.press_ctrl_c()
    assert told.messages() == before


def test_copies_go_their_own_way(told):
    before = told.messages()
    copy = re.search(r"this is copy (\d+) of \1; it has no file yet", told.say("/fork")).group(1)
    assert told.output.endswith(f"\n{copy}{PROMPT}")
    told.say("Only here.")
    assert len(told.messages()) == 5
    assert f"this is copy {int(copy) - 1} of {copy}" in told.say(f"/fork {int(copy) - 1}")
    assert told.messages() == before
    told.say(f"/fork {copy}")
    assert told.messages()[3] == "3 user: Only here."


def test_files(told, tmp_path):
    foreign, other, mine = (tmp_path / f"{name}.safetensors" for name in ("foreign", "other", "mine"))
    foreign.write_bytes(b"something else")
    ChatSession(*load(backbone(), adapter=adapter("qwen3_ssw_msg"))).save(other)
    assert "is there already and is not a session" in told.say(f"/save {foreign}")
    assert foreign.read_bytes() == b"something else"
    assert f"{foreign} is not a session" in told.say(f"/load {foreign}")
    assert "was made with another adapter" in told.say(f"/load {other}")
    before = told.messages()
    told.say("/fork")
    assert f"saved to {mine}" in told.say(f"/save {mine}")
    assert stat.S_IMODE(mine.stat().st_mode) == 0o600
    told.say("/fork")
    told.say("/undo")
    assert told.messages() != before
    assert "3 messages, history full" in told.say(f"/load {mine}")
    assert told.messages() == before
    # A copy without a file, for the other tests.
    told.say("/fork")


def test_a_chat_that_is_in_no_file_is_kept_when_another_is_loaded(told, tmp_path):
    file = tmp_path / "other.safetensors"
    ChatSession(*load(backbone(), adapter=adapter())).save(file)
    told.say("/fork")
    before = told.messages()
    shown = told.say(f"/load {file}")
    assert "0 messages, history full; the chat before is copy" in shown
    assert told.messages() == []
    told.say(re.search(r"/fork \d+", shown).group())
    assert told.messages() == before


def test_a_chat_goes_on_token_for_token_in_another_process(tmp_path):
    """The first reply was stopped, and the process was killed in the middle of the second one."""
    file = tmp_path / "chat.safetensors"
    with Terminal("--max-tokens", 2000, "--session", file) as terminal:
        terminal.type("Hi\r")
        terminal.wait(lambda: re.search(r"Hi\n(.*\n)*.{20}", drawn(terminal.output)), "some of the reply")
        terminal.type(CTRL_C + CTRL_C)
        speeds = re.search(r"\n(\d+) tokens .* · stopped\n", terminal.wait_for_prompt())
        assert int(speeds.group(1)) < 2000
        user, reply = terminal.messages()
        assert user == "0 user: Hi"
        stopped = ChatSession.load(*load(backbone(), adapter=adapter()), file)
        assert stopped.messages[1]["content"].startswith(reply.removeprefix("1 assistant: ")[:20])
        terminal.type("Why?\r")
        terminal.wait(lambda: re.search(r"Why\?\n(.*\n)*.{20}", drawn(terminal.output)), "some of the reply")
        terminal.process.kill()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    expected = stopped.send("Go on.", 6)
    with Terminal("--max-tokens", 6, "--session", file) as terminal:
        assert terminal.messages() == [user, reply]
        assert f"\n{expected}\n6 tokens" in drawn(terminal.say("Go on."))
        code, shown = terminal.leave()
    assert code == 0
    assert f"saved to {file}" in shown
    assert ChatSession.load(*load(backbone(), adapter=adapter()), file).segments == stopped.segments


def test_leaving_waits_for_a_chat_that_cannot_be_saved(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    other = tmp_path / "other.safetensors"
    with Terminal("--max-tokens", 6, "--session", folder / "chat.safetensors") as terminal:
        shutil.rmtree(folder)
        assert f"error: there is no folder {folder}" in terminal.say("Hello")
        terminal.type(CTRL_D)
        assert "/save FILE saves the chat elsewhere" in terminal.wait_for_prompt()
        assert len(terminal.messages()) == 2
        assert f"saved to {other}" in terminal.say(f"/save {other}")
        assert terminal.leave("/quit\r")[0] == 0
    assert len(ChatSession.load(*load(backbone(), adapter=adapter()), other).messages) == 2
    with Terminal("--session", other) as terminal:
        other.unlink()
        tmp_path.rename(moved := Path(f"{tmp_path}-moved"))
        terminal.say("/undo")
        assert "error: there is no folder" in terminal.say("/quit")
        code, shown = terminal.leave()
        moved.rename(tmp_path)
    assert code == 2
    assert shown.count("error: ") == 1


NO_FILE = "this chat has no file yet (/save FILE)"


def test_leaving_waits_for_a_chat_that_is_in_no_file(tmp_path):
    file, other = (tmp_path / f"{name}.safetensors" for name in ("chat", "other"))
    with Terminal("--max-tokens", 6, "--session", file) as terminal:
        # The chat of the session file is empty: its file goes on.
        assert NO_FILE not in terminal.say("/new")
        terminal.say("Hello")
        before = file.read_bytes()
        assert NO_FILE in terminal.say("/new")
        terminal.say("Only here.")
        assert NO_FILE in terminal.say("/branch 1")
        terminal.type(CTRL_D)
        assert (
            "error: copy 1 is in no file (turns: 1); /fork 1 and then /save FILE save it" in terminal.wait_for_prompt()
        )
        assert terminal.output.count("error: ") == 1 and "again leaves all the same" in terminal.output
        terminal.say("/fork 1")
        assert f"saved to {other}" in terminal.say(f"/save {other}")
        assert terminal.leave("/quit\r")[0] == 0
    assert file.read_bytes() == before
    assert ChatSession.load(*load(backbone(), adapter=adapter()), other).messages[0]["content"] == "Only here."


def test_an_imported_chat_gets_the_file_of_an_empty_one(tmp_path):
    (tmp_path / "x.md").write_text("## User\n\nMy word is jade.\n\n## Assistant\n\nNoted.\n")
    file = tmp_path / "chat.safetensors"
    lines = f"/import {tmp_path / 'x.md'}\nHello\n/quit\n"
    for code, found in ((0, []), (2, [NO_FILE])):
        result = run_command("chat", *TINY, "--session", file, "--max-tokens", 6, stdin=lines)
        assert (result.returncode, re.findall(re.escape(NO_FILE), result.stdout)) == (code, found), result.stderr
        chat = ChatSession.load(*load(backbone(), adapter=adapter()), file)
        assert [message["content"] for message in chat.messages][:3] == ["My word is jade.", "Noted.", "Hello"]
    # The chat of the file is as it was saved, so the imported one takes its place in the terminal.
    assert result.stderr == "error: this chat is in no file (turns: 2); /save FILE saves it\n"


def test_a_pipe_instead_of_a_terminal():
    lines = 'Hello there.\n/messages\n/nonsense\nGrüße\n"""\nto the\nend'
    result = run_command("chat", *TINY, UNKEPT, "--max-tokens", 6, stdin=lines, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "0 user: Hello there." in result.stdout
    assert "error: there is no command /nonsense" in result.stdout
    assert "error: the message has half a character" in result.stdout
    assert len(re.findall(r"^\d tokens", result.stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize("history", ["none", "30"])
def test_histories(history):
    result = run_command("chat", *TINY, UNKEPT, "--max-tokens", 6, "--history", history, stdin="One.\nTwo.\n")
    assert f"history  {history} " in result.stdout
    assert result.stdout.count("6 tokens") == 2


def test_a_chat_is_kept_from_its_first_turn_until_it_is_forgotten(tmp_path):
    folder = tmp_path / "chats"
    kept = folder.glob("*.safetensors")
    with Terminal("--chats", folder, "--max-tokens", 6) as terminal:
        assert not list(kept)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        terminal.say("My word is jade.")
        (file,) = folder.glob("*.safetensors")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        before = terminal.messages()
        assert "this chat has no title yet" in terminal.say("/name")
        assert "this chat is called 'The [b]word[/b]'" in terminal.say("/name The [b]word[/b]")
        assert "a new chat" in terminal.say("/new")
        assert terminal.messages() == []
        assert len(list(folder.glob("*.safetensors"))) == 1
        terminal.say("Hello there.")
        assert len(list(folder.glob("*.safetensors"))) == 2
        terminal.say("/reset")
        assert list(folder.glob("*.safetensors")) == [file]
        assert terminal.leave()[0] == 0
    assert list(folder.glob("*.safetensors")) == [file]
    listed = run_command("chat", "--chats", folder, "--list")
    assert re.search(r"1 .* 1   qwen3-tiny   The \[b\]word\[/b\]", listed.stdout)
    # Without --model: the folder knows which one it was.
    result = run_command("chat", "--chats", folder, "--continue", stdin="/messages\n/name\n")
    assert result.returncode == 0, result.stderr
    assert all(line in result.stdout for line in before)
    assert "this chat is called 'The [b]word[/b]'" in result.stdout


def test_a_model_that_was_moved_is_named_once(tmp_path):
    places = [tmp_path / "first", tmp_path / "second"]
    shutil.copytree(backbone(), places[0] / "model")
    shutil.copytree(adapter(), places[0] / "adapter")
    chats = ["--chats", tmp_path / "chats", "--max-tokens", 2]
    named = ["--model", places[0] / "model", "--adapter", places[0] / "adapter"]
    assert run_command("chat", *chats, *named, stdin="Hello\n").returncode == 0
    places[0].rename(places[1])
    named = ["--model", places[1] / "model", "--adapter", places[1] / "adapter"]
    for options in (["--continue", *named], ["--continue"]):
        result = run_command("chat", *chats, *options, stdin="Hello again\n", COLUMNS="400")
        assert result.returncode == 0, result.stderr
        assert str(places[1] / "model") in result.stdout


def test_a_branch_is_kept_beside_the_chat(tmp_path):
    with Terminal("--chats", tmp_path, "--max-tokens", 6) as terminal:
        terminal.say("My word is jade.")
        before = terminal.messages()
        terminal.say("Another.")
        shown = terminal.say("/branch 1")
        assert "this chat goes on from reply 1; the chat before is copy 1 (/fork 1 goes back to it)" in shown
        assert terminal.messages() == before
        terminal.say("Only here.")
        assert len(terminal.messages()) == 4
        terminal.say("/fork 1")
        assert terminal.messages()[2] == "2 user: Another."
        terminal.leave()
    model, tokenizer = load(backbone(), adapter=adapter())
    chats = [ChatSession.load(model, tokenizer, file) for file in tmp_path.glob("*.safetensors")]
    assert {chat.messages[2]["content"] for chat in chats} == {"Another.", "Only here."}
    assert {chat.send("And?", 6) for chat in chats} == {terminal_reply(text) for text in ("Another.", "Only here.")}


def terminal_reply(second: str) -> str:
    return replies("My word is jade.", second, "And?", system=None)[-1]


@pytest.mark.parametrize("ending", ["json", "md"])
def test_an_export_is_imported(tmp_path, ending):
    file = tmp_path / f"chat.{ending}"
    with Terminal("--history", "none", "--write", "user", "--max-tokens", 6) as terminal:
        terminal.say("My word is jade.")
        terminal.say("/name Words")
        before = terminal.messages()
        assert f"exported to {file}, without the memory" in terminal.say(f"/export {file}")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "exists already" in terminal.say(f"/export {file}")
        assert "2 messages, history none; the chat before is copy 1" in terminal.say(f"/import {file}")
        assert terminal.messages() == before
        assert "this chat is called 'Words'" in terminal.say("/name")
        assert "written into the memory: user" in terminal.say("/write")
        file.write_text("{" if ending == "json" else "Hi")
        assert "error: " in terminal.say(f"/import {file}")
        assert terminal.messages() == before


def test_a_folder_that_cannot_be_written_keeps_no_chat(tmp_path):
    (tmp_path / "file").touch()
    result = run_command("chat", *TINY, "--chats", tmp_path / "file" / "chats", "--max-tokens", 6, stdin="Hello\n")
    assert result.returncode == 0, result.stderr
    assert "warning: this chat is not kept (" in result.stderr
    assert "kept in  no file" in result.stdout and "6 tokens" in result.stdout
