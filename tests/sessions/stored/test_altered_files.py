"""Session files that were altered, or that have an older format: they are refused in one line, or are a chat."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from mlx_deltamem import ChatSession
from mlx_deltamem.files.safetensors import check_safetensors
from mlx_deltamem.sessions.stored.file import _checksum, _metadata
from tests.sessions.test_faults import refused
from tests.sessions.test_session import every_history, every_kind, loaded, new_chat, same_memory, told

GO_ON = "What is it, then?"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "chat.safetensors"


def rewrite(path: Path, change: Callable[[dict], object], to: Path | None = None) -> Path:
    """Change the JSON of a session file and give the file the right checksum."""
    metadata, entries = _metadata(path), load_prompt_cache(str(path))
    session = json.loads(metadata["session"])
    changed = change(session)
    text = json.dumps(session if changed is None else changed)
    to = path if to is None else to
    save_prompt_cache(str(to), entries, {"session": text, "checksum": _checksum(text, entries)})
    return to


def with_everything() -> ChatSession:
    chat = ChatSession(*loaded(), system="Be brief.", tools=[{"type": "function", "function": {"name": "look"}}])
    chat.send("Hello.", 3)
    chat.remember([{"role": "user", "content": "My cat is Tom."}, {"role": "assistant", "content": "Good."}])
    chat.memory = {0: mx.ones((1, 1, 8, 8)) * 0.01}
    chat.send([{"role": "tool", "content": "42"}, {"role": "user", "content": "So?"}], 3, write="user")
    return chat


def set_at(keys: tuple[str | int, ...], value: object) -> Callable[[dict], None]:
    def change(session: dict) -> None:
        value_at(session, keys[:-1])[keys[-1]] = value

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        *((("system",), value) for value in (5, [], {}, True, "\ud800")),
        *((("history",), value) for value in ("some", 0, -3, None, [], 2.5, True)),
        *((("write",), value) for value in ("some", None, ["all"], 5)),
        *((("turns", 0, "write"), value) for value in ("some", None, [], True)),
        *((("turns", 0, "messages"), value) for value in ([], "x", None, [{}], {"role": "user", "content": "x"}, [5])),
        *((("turns", 0, "messages", 0, "role"), value) for value in ("assistant", "nobody", None, 5)),
        *((("turns", 0, "messages", 0, "content"), value) for value in ("", None, 5, "\udc00", [5])),
        *((("turns", 0, "reply"), value) for value in (None, 5, ["x"], "\ud800")),
        *((("turns", 0, "tool_calls"), value) for value in (None, {}, "", [5], [{}], [{"function": {"name": ""}}])),
        *((("turns", 0, "remembered"), value) for value in (True, None, 1, "yes")),
        *((("turns", 0, "memory_set"), value) for value in (None, 1, "yes")),
        *((("memory_set",), value) for value in (None, 0, "yes")),
        *((("keeps_text",), value) for value in (None, 1, "yes", True)),
        *((("turns",), value) for value in (None, {}, [], "x", 5)),
        *((("template_options",), value) for value in (None, [], "x", {"chat_template": "{{ messages }}"})),
        *(
            (("template_options", name), value)
            for name, value in (
                *((name, None) for name in ("self", "model", "tokenizer", "system", "history", "write", "memory")),
                ("tokenize", True),
                ("messages", []),
                ("tools", "x"),
                ("tools", [5]),
                ("documents", "\ud800"),
                ("depth", float("nan")),
                ("chat_template", 5),
                ("chat_template", {"default": "x"}),
            )
        ),
        *((("origin",), value) for value in (None, {}, [], {"name": "x"})),
        *((("origin", "adapter"), value) for value in (None, 5, "0" * 16)),
        (("origin", "more"), "x"),
        *((("file_id",), value) for value in (None, 5, [])),
        *((("format_version",), value) for value in (True, 2.0, "2", None, 4, 0, [])),
    ],
    ids=repr,
)
def test_an_altered_session_file_with_a_right_checksum(keys, value, path):
    with_everything().save(path)
    rewrite(path, set_at(keys, value))
    with pytest.raises(ValueError, match=f"(?s){path.name}|template option") as error:
        ChatSession.load(*loaded(), path)
    assert "\n" not in str(error.value)


def test_a_chat_template_in_a_file_is_used_only_if_it_is_the_tokenizers(path):
    model, tokenizer = loaded()
    chat = ChatSession(model, tokenizer, chat_template=tokenizer.chat_template)
    chat.send("Hello.", 3)
    chat.save(path)
    again = ChatSession.load(model, tokenizer, path)
    assert again.send(GO_ON, 3) == chat.send(GO_ON, 3)
    ran = tokenizer.chat_template + "{{- raise_exception('run') -}}"
    rewrite(path, set_at(("template_options", "chat_template"), ran))
    with pytest.raises(ValueError, match="brings a chat template that is not the tokenizer's"):
        ChatSession.load(model, tokenizer, path)


def test_a_chat_with_another_template_than_the_tokenizers_is_not_saved(path):
    model, tokenizer = loaded()
    chat = ChatSession(model, tokenizer, chat_template=f"{tokenizer.chat_template}{{# Another one. #}}")
    chat.send("Hello.", 3)
    refused(chat, lambda: chat.save(path), "could not be loaded again; set tokenizer.chat_template to it")
    assert list(path.parent.iterdir()) == []


def test_options_that_are_not_json_are_refused_when_the_chat_is_saved(path):
    chat = ChatSession(*loaded(), today=object())
    chat.send("Hello.", 2)
    refused(chat, lambda: chat.save(path), "the template option 'today' is not JSON")
    assert list(path.parent.iterdir()) == []


def places(value: object, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value within JSON."""
    if keys:
        yield keys
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*keys, key))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([10**30, -1e300, float("inf"), "", "x", "user", "all", "none", "full", "\ud800", "<|im_end|>"])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=4,
)


@st.composite
def alterations(draw: st.DrawFn) -> Callable[[dict], None]:
    """A change of one value in the JSON of a session file: replaced, copied from elsewhere, removed or added."""
    kind, seed = draw(st.sampled_from(["replace", "remove", "copy", "add"])), draw(st.randoms(use_true_random=False))
    value, name = draw(json_values), draw(st.sampled_from(["x", "tools", "write", "model", "chat_template"]))

    def change(session: dict) -> None:
        *outer, key = seed.choice(list(places(session)))
        parent = value_at(session, outer)
        if kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[name] = value
        elif kind == "add":
            parent.insert(key, deepcopy(parent[key]))
        else:
            elsewhere = value_at(session, seed.choice(list(places(session))))
            parent[key] = value if kind == "replace" else deepcopy(elsewhere)

    return change


def value_at(session: dict, keys: Sequence[str | int]) -> object:
    value = session
    for key in keys:
        value = value[key]
    return value


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=alterations())
def test_any_altered_json_is_refused_or_a_chat(change, path):
    """Either loading raises a ValueError with one line, or the chat can go on, back and into another file."""
    if not path.exists():
        with_everything().save(path, save_kv=True)
    altered = rewrite(path, change, to=path.with_name("altered.safetensors"))
    try:
        chat = ChatSession.load(*loaded(), altered)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert all(isinstance(message["content"], str) for message in chat.messages)
    assert len(chat.turns) == 3
    again = altered.with_name("again.safetensors")
    again.unlink(missing_ok=True)
    chat.save(again)
    assert ChatSession.load(*loaded(), again).messages == chat.messages
    try:
        chat.send(GO_ON, 2)
        chat.edit(-2, "Go on.")
        for _ in range(4):
            chat.undo()
    except ValueError as error:
        # The template or the window may refuse what the file says.
        assert "\n" not in str(error)


def save_as_version_1(chat: ChatSession, path: Path, with_text: bool) -> None:
    """Save a file of version 1: one message in each turn, and each turn written as a whole or not at all."""
    chat.save(path)
    entries = load_prompt_cache(str(path))
    if with_text:
        entries = [*chat._state.cache[:-1], *entries]
    session = json.loads(_metadata(path)["session"])
    session["format_version"] = 1
    session["keeps_text"] = with_text
    session["turns"] = [
        {"user": turn["messages"][0]["content"], "reply": turn["reply"], "writing": turn["write"] == "all"}
        for turn in session["turns"]
    ]
    del session["write"], session["memory_set"]
    text = json.dumps(session, ensure_ascii=False)
    save_prompt_cache(str(path), entries, {"session": text, "checksum": _checksum(text, entries)})


@pytest.mark.slow
@every_kind
@every_history
@pytest.mark.parametrize("with_text", [False, True])
def test_a_file_of_the_first_version_loads_goes_on_and_back(kind, history, with_text, path):
    chat = new_chat(kind, history)
    chat.send("Hello there. How are you?", 6)
    chat.send("Not written.", 4, read_only=True)
    chat.send("My word is jade!", 6)
    save_as_version_1(chat, path, with_text)
    again = ChatSession.load(*loaded(kind), path)
    assert (again.messages, again.segments, again.history) == (chat.messages, chat.segments, chat.history)
    assert [turn.write for turn in again.turns] == ["all", "none", "all"]
    assert again.write == "all"
    assert all(mx.array_equal(state, chat.memory[layer]) for layer, state in again.memory.items())
    again.save(path)
    again = ChatSession.load(*loaded(kind), path)
    assert again.send(GO_ON, 8) == chat.send(GO_ON, 8)
    assert same_memory(again, chat, 2e-5)
    for _ in range(4):
        assert again.undo() == chat.undo()
        assert same_memory(again, chat, 2e-5)
    assert again.send(GO_ON, 8) == chat.send(GO_ON, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("turns", 0, "user"), ""),
        (("turns", 0, "user"), None),
        (("turns", 0, "user"), "\ud800"),
        (("turns", 0, "writing"), "all"),
        (("turns", 0, "writing"), 1),
        (("turns", 0, "reply"), 5),
        (("turns", 0), {"user": "x"}),
        (("turns",), []),
    ],
    ids=repr,
)
def test_an_altered_file_of_the_first_version(keys, value, path):
    save_as_version_1(told(), path, with_text=False)
    rewrite(path, set_at(keys, value))
    with pytest.raises(ValueError, match=path.name):
        ChatSession.load(*loaded(), path)


def test_names_that_would_become_long_lists_are_refused(path):
    """MLX fills up a list to the highest number in a name: the name 9999999 alone takes a gigabyte."""
    with_everything().save(path)
    header = check_safetensors(path)
    for name in ("9999999999.0", "0.99999999", "0.9_999_999", "1." * 30 + "1"):
        arrays, metadata = mx.load(str(path), return_metadata=True)
        mx.save_safetensors(str(path.with_name("a.safetensors")), {**arrays, name: mx.zeros(1)}, metadata)
        mx.save_safetensors(str(path.with_name("b.safetensors")), arrays, {**metadata, name: "x"})
        for other in ("a.safetensors", "b.safetensors"):
            with pytest.raises(
                ValueError, match=r"is not a session \(ValueError: its names (describe lists|have more)"
            ):
                ChatSession.load(*loaded(), path.with_name(other))
    assert check_safetensors(path) == header


@pytest.mark.slow
@pytest.mark.parametrize("depth", [90, 150, 900, 5000, 100_000])
def test_json_of_any_depth_is_one_line(depth, path):
    with_everything().save(path)
    metadata, entries = _metadata(path), load_prompt_cache(str(path))
    for text in (
        "[" * depth + "]" * depth,
        metadata["session"].replace('"tools"', f'"x": {"[" * depth}{"]" * depth}, "tools"'),
    ):
        save_prompt_cache(str(path), entries, {"session": text, "checksum": _checksum(text, entries)})
        with pytest.raises(ValueError, match=f"{path.name}|template option") as error:
            ChatSession.load(*loaded(), path)
            # A small depth is a template option like others.
            raise ValueError(path.name)
        assert len(str(error.value).splitlines()) == 1
        assert len(str(error.value)) < 1000


@pytest.mark.slow
def test_places_of_no_turn_are_refused(path):
    with_everything().save(path)
    metadata, entries = _metadata(path), load_prompt_cache(str(path))
    kept = entries[-1].cache[2]
    for wrong in (-1, -2, 10**6):
        entries[-1].cache[2] = mx.concatenate([kept[:-1], mx.array([wrong], mx.int32)])
        save_prompt_cache(str(path), entries, {**metadata, "checksum": _checksum(metadata["session"], entries)})
        with pytest.raises(ValueError, match="its places are not those of"):
            ChatSession.load(*loaded(), path)


def test_a_file_that_was_cut_short_or_is_a_pipe_is_one_line(path):
    with_everything().save(path)
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"is not a session \(.*\); expected a file that a chat saved"):
            ChatSession.load(*loaded(), path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError):
        ChatSession.load(*loaded(), path)
