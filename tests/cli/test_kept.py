"""The chats that are kept: listed, found, searched, and damaged by others."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.cli.kept import KeptChats, Places
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> KeptChats:
    """Three chats, of which the first was saved last; and files that are no chats."""
    model, tokenizer = load(backbone(), adapter=adapter())
    kept = KeptChats(tmp_path_factory.mktemp("home") / "chats")
    for age, (title, text) in enumerate(
        (("Garden \x1b[2J", "The shed's key\nhangs by the clock."), ("", "STRASSE or Straße? " * 9), ("Garden", "Hi"))
    ):
        chat = ChatSession(model, tokenizer, system="Be brief.")
        chat.title = title
        chat.send(text, 2)
        file = kept.new_file()
        chat.save(file)
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    kept.note_model(origin_of(model, tokenizer), Places("the/model", "the/adapter"))
    (kept.folder / "damaged.safetensors").write_bytes(b"\xff" * 100)
    (kept.folder / ".hidden.safetensors").write_bytes(b"")
    (kept.folder / "notes.txt").touch()
    return kept


def test_the_last_chat_is_the_first_of_the_list(kept):
    chats, unreadable = kept.all()
    assert [(chat.number, chat.title) for chat in chats] == [
        (1, "Garden \x1b[2J"),
        (2, "STRASSE or Straße? STRASSE or Straße? STRASSE or S..."),
        (3, "Garden"),
    ]
    assert [chat.texts.turns for chat in chats] == [1, 1, 1]
    assert [file.name for file in unreadable] == ["damaged.safetensors"]


def test_chats_are_found_by_number_title_and_file(kept):
    chats, _ = kept.all()
    assert kept.find("") == chats[0]
    assert kept.find("3") == kept.find("garden") == kept.find(chats[2].file.name) == kept.find(chats[2].file.stem)
    assert kept.find("strasse OR") == chats[1]
    for name, message in (("4", "no chat is called '4' among 3"), ("x", "no chat is called"), ("gar", "2 chats have")):
        with pytest.raises(ValueError, match=message):
            kept.find(name)
    with pytest.raises(ValueError, match="no chat is kept in"):
        KeptChats(kept.folder / "nowhere").find("")


def test_a_title_may_be_a_number(tmp_path):
    kept = KeptChats(tmp_path)
    chat = ChatSession(*load(backbone(), adapter=adapter()))
    for age, title in enumerate(("report of 1999", "2", "2026")):
        chat = chat.fork()
        chat.title = title
        file = kept.new_file()
        chat.save(file)
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    assert kept.find("2026").title == "2026"
    assert kept.find("1999").title == "report of 1999"
    # The number in the list goes before, and a part of another number does not count.
    assert kept.find("1").title == "report of 1999"
    with pytest.raises(ValueError, match="no chat is called '9' among 3"):
        kept.find("9")


def test_a_name_of_many_digits_is_told_in_one_short_line(kept):
    for name in ("9" * 5000, "9" * 30, "²"):
        with pytest.raises(ValueError, match="no chat is called") as raised:
            kept.find(name)
        assert len(str(raised.value)) < 300


def test_messages_are_searched_in_whatever_case_and_spacing(kept):
    assert [(chat.number, role, part) for chat, role, part in kept.search("KEY hangs")] == [
        (1, "user", "The shed's key hangs by the clock.")
    ]
    assert [chat.number for chat, _, _ in kept.search("be BRIEF")] == [1, 2, 3]
    assert [(chat.number, role) for chat, role, _ in kept.search("garden")] == [(1, "title"), (3, "title")]
    # ß is ss when cases are folded, and the text is then longer.
    ((chat, _, part),) = kept.search("straße? s")
    assert chat.number == 2 and "strasse? s" in part and part.endswith("...")
    assert kept.search("nothing of the kind") == []


def test_the_model_of_a_chat_is_known(kept):
    model, tokenizer = load(backbone(), adapter=adapter())
    (chat, *_), _ = kept.all()
    assert kept.places_of(chat) == Places("the/model", "the/adapter")
    assert kept.last_of(origin_of(model, tokenizer)) == chat
    other = load(backbone(), adapter=adapter("qwen3_ssw_msg"))
    with pytest.raises(ValueError, match="no chat with this model and adapter is kept"):
        kept.last_of(origin_of(*other))
    file = kept.folder / "models.json"
    content = file.read_text()
    (key,) = json.loads(content)
    assert file.stat().st_mode & 0o777 == 0o600
    for damaged in ("{", "[]", json.dumps({key: []}), json.dumps({key: {"model": 3, "adapter": "a"}}), "{}"):
        file.write_text(damaged)
        assert kept.places_of(chat) is None
    kept.note_model(origin_of(model, tokenizer), Places("the/model", "the/adapter"))
    assert json.loads(file.read_text()) == json.loads(content)


@pytest.mark.slow
def test_lists_and_findings_are_printed(kept):
    listed = run_command("chat", "--chats", kept.folder, "--list", COLUMNS="120")
    assert listed.returncode == 0, listed.stderr
    assert "Garden \\x1b[2J" in listed.stdout and "\x1b" not in listed.stdout
    assert "damaged.safetensors is no chat of this version" in listed.stdout
    found = run_command("chat", "--chats", kept.folder, "--search", "shed")
    assert found.stdout == "1  Garden \\x1b[2J\n   user: The shed's key hangs by the clock.\n"
    assert "no chat is kept in" in run_command("chat", "--chats", kept.folder / "none", "--list").stdout
    for arguments, message in (
        (("--search", "elephant"), "no message in"),
        (("--search", " "), "--search is empty"),
        (("--continue", "9"), "no chat is called '9'"),
        (("--continue", "gar"), "2 chats have 'gar' in their title (numbers 1, 3)"),
        (("--continue", "--no-save"), "--continue goes on with a chat that is kept"),
        (("--continue", "--session", "a.safetensors"), "--continue goes on with a chat that is kept"),
        (("--session", "a.safetensors", "--no-save"), "--no-save keeps nothing, and --session names a file"),
        (("--list", "--search", "shed"), "--search: not allowed with argument --list"),
    ):
        assert_refused(run_command("chat", "--chats", kept.folder, *arguments), message)


@pytest.mark.slow
def test_a_session_that_is_only_looked_at_stays_as_it_is(tmp_path):
    file = tmp_path / "anna.safetensors"
    chat = ("chat", "--model", backbone(), "--adapter", adapter(), "--session", file, "--max-tokens", "2")
    assert run_command(*chat, "--save-kv", stdin="Hello\n").returncode == 0
    before = file.read_bytes()
    assert run_command(*chat, stdin="/messages\n").returncode == 0
    assert file.read_bytes() == before
    assert run_command(*chat, "--write", "user", stdin="/messages\n").returncode == 0
    assert file.read_bytes() != before


@pytest.mark.slow
def test_another_end_of_replies_does_not_make_it_another_tokenizer(tmp_path):
    file = tmp_path / "anna.safetensors"
    chat = ("chat", "--model", backbone(), "--adapter", adapter(), "--session", file, "--max-tokens", "2")
    for options in (("--extra-eos-token", "5"), ("--extra-eos-token", "5"), ()):
        ended = run_command(*chat, *options, stdin="Hello\n")
        assert ended.returncode == 0, ended.stderr
    model, tokenizer = load(backbone(), adapter=adapter())
    assert len(ChatSession.load(model, tokenizer, file).turns) == 3
    # Earlier versions saved it as a part of the tokenizer.
    tokenizer.add_eos_token("5")
    old = ChatSession(model, tokenizer)
    old.save(file.with_name("old.safetensors"))
    ended = run_command(*chat[:-4], "--session", file.with_name("old.safetensors"), "--extra-eos-token", "5", stdin="")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_last_chat_of_a_model_goes_on(kept, tmp_path):
    places = ("--model", backbone(), "--adapter", adapter())
    result = run_command("chat", "--chats", kept.folder, "--continue", *places, stdin="/messages\n", COLUMNS="200")
    assert "1 user: The shed's key" in result.stdout, result.stderr
    model, tokenizer = load(backbone(), adapter=adapter())
    alone = KeptChats(tmp_path)
    chat = ChatSession(model, tokenizer)
    chat.send("Hi", 2)
    chat.save(alone.new_file())
    # The model is that of the chat, where only the adapter is named: its folder may have been moved.
    shutil.copytree(adapter(), tmp_path / "moved")
    result = run_command("chat", "--chats", kept.folder, "--continue", "1", "--adapter", tmp_path / "moved", stdin="")
    assert result.returncode == 0 and backbone() in result.stdout, result.stderr
    result = run_command("chat", "--chats", tmp_path, "--continue")
    assert_refused(result, "the model of the chat 'Hi' is not known here")
    assert Path(backbone()).name in result.stderr
