"""What a chat is asked for wrongly: one ValueError, on one line, and the chat is as it was."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from mlx_deltamem import ChatSession, load, read_only
from mlx_deltamem.sessions.stored.file import _checksum, _metadata
from tests.conftest import adapter, backbone, distance
from tests.sessions.test_session import every_history, every_kind, loaded, new_chat, same_memory, told

NO_TEXTS = ["\ud800", "half \udfff of one", b"x", 5, None, True, {"a": 1}, ["a"], 2.5]
NO_COUNTS = [0, -1, -7, 2.5, "x", "3", None, True, float("nan"), [1], 10.0]
GO_ON = "What is it, then?"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "chat.safetensors"


def refused(chat: ChatSession, call: Callable[[], object], match: str | None = None) -> None:
    """The call is refused, and the chat is bit for bit what it was."""
    messages, memory, segments = chat.messages, chat.memory, chat.segments
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    assert (chat.messages, chat.segments) == (messages, segments)
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())


@every_history
@pytest.mark.parametrize("index", range(5))
def test_an_edit_past_the_window(history, index, monkeypatch):
    """Of any message: what follows from it would not fit either."""
    chat = told("qwen3_tsw_qo", history)
    monkeypatch.setattr(chat.model.args, "max_position_embeddings", 150)
    refused(chat, lambda: chat.edit(index, "too long " * 40), "the model's window is 150")
    monkeypatch.undo()
    assert chat.send(GO_ON, 6) == told("qwen3_tsw_qo", history).send(GO_ON, 6)


@pytest.mark.parametrize("write", ["after", "user", "none"])
def test_an_edit_past_the_window_whatever_is_written(write, monkeypatch):
    chat = new_chat()
    chat.write = write
    chat.send("Hello.", 4)
    monkeypatch.setattr(chat.model.args, "max_position_embeddings", 100)
    for index in range(3):
        refused(chat, lambda index=index: chat.edit(index, "too long " * 40), "the model's window is 100")


@pytest.mark.parametrize("count", NO_COUNTS)
def test_steps_that_are_none(count):
    chat = told()
    for call in (
        lambda: chat.send("x", 2, prefill_step_size=count),
        lambda: chat.stream("x", 2, prefill_step_size=count),
        lambda: chat.regenerate(2, prefill_step_size=count),
        lambda: chat.stream_regenerate(2, prefill_step_size=count),
        lambda: chat.remember("x", prefill_step_size=count),
    ):
        refused(chat, call, "prefill_step_size is")


@pytest.mark.parametrize("count", [count for count in NO_COUNTS if count != -1])
def test_lengths_of_replies_that_are_none(count):
    chat = told()
    for call in (
        lambda: chat.send("x", count),
        lambda: chat.stream("x", max_tokens=count),
        lambda: chat.regenerate(count),
        lambda: chat.stream_regenerate(max_tokens=count),
    ):
        refused(chat, call, "max_tokens is")


def test_a_stop_text_is_not_its_letters():
    whole = new_chat().send("Hello there. How are you?", 30)
    stop = whole[5:8]
    for given_as in (stop, [stop], (stop,)):
        assert new_chat().send("Hello there. How are you?", 30, stop=given_as) == whole[: whole.index(stop)]
    # The letters in another order, so that each of them is in the reply and the text is not.
    absent = next(text for text in (stop[::-1], whole[7] + "\x00") if text not in whole)
    assert new_chat().send("Hello there. How are you?", 30, stop=absent) == whole
    chat = told()
    assert chat.regenerate(10, stop=absent) == told().messages[-1]["content"]


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 5, None, b"ab", [5], [None], {"a": 1}, iter(["a"])])
def test_stop_texts_that_are_none(stop):
    chat = told()
    refused(chat, lambda: chat.send("x", 2, stop=stop), "stop is")
    refused(chat, lambda: chat.regenerate(2, stop=stop), "stop is")


@pytest.mark.parametrize("text", NO_TEXTS, ids=repr)
def test_texts_that_are_none(text):
    chat = told()
    for call in (
        lambda: chat.send(text, 2),
        lambda: chat.send([{"role": "user", "content": text}], 2),
        lambda: chat.remember(text),
        lambda: chat.remember([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]),
        *(lambda index=index: chat.edit(index, text) for index in range(len(chat.messages))),
    ):
        # A list and a dict may be messages; of these here, none is.
        refused(chat, call)
    if text is not None:
        with pytest.raises(ValueError, match="the system prompt is"):
            ChatSession(*loaded(), system=text)


@pytest.mark.parametrize("tools", ["abc", 5, [1], ["ab"], {"a": 1}, [{"a": {1}}], [{"a": "\ud800"}]], ids=repr)
def test_tools_that_are_none(tools):
    with pytest.raises(ValueError, match="the tools are not a list of JSON objects"):
        ChatSession(*loaded(), tools=tools)


def test_tools_are_copied():
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    chat = ChatSession(*loaded(), tools=tools)
    tools[0]["function"]["name"] = "other"
    assert chat._state.template.tools[0]["function"]["name"] == "look"


@pytest.mark.parametrize("index", [1.5, "a", None, True, 5, -6, [0]])
def test_places_that_are_none(index):
    chat = told()
    refused(chat, lambda: chat.edit(index, "x"), "there is no message")


@pytest.mark.parametrize("write", [5, ["all"], "ALL", "", b"all"], ids=repr)
def test_ways_of_writing_that_are_none(write):
    chat = told()
    refused(chat, lambda: chat.send("x", 2, write=write), "write is")
    refused(chat, lambda: chat.remember("x", write=write), "write is")
    refused(chat, lambda: setattr(chat, "write", write), "write is")
    with pytest.raises(ValueError, match="write is"):
        ChatSession(*loaded(), write=write)


@pytest.mark.parametrize(
    "memory",
    [
        5,
        [mx.zeros((1, 1, 8, 8))],
        {0: 5},
        {0: mx.zeros((1, 2))},
        {0: mx.zeros((2, 1, 8, 8))},
        {"0": mx.zeros((1, 1, 8, 8))},
        {99: mx.zeros((1, 1, 8, 8))},
        {0: mx.full((1, 1, 8, 8), mx.nan)},
        {1: mx.zeros((1, 1, 8, 8)), 2: mx.full((1, 1, 8, 8), -mx.inf)},
    ],
    ids=repr,
)
def test_memories_that_are_none(memory):
    chat = told()
    refused(chat, lambda: setattr(chat, "memory", memory))
    with pytest.raises(ValueError, match=r"memory|state"):
        ChatSession(*loaded(), memory=memory)


def overflowing() -> tuple:
    """A model of which one layer writes values that no float32 holds."""
    model, tokenizer = load(backbone(), adapter=adapter())
    layer = model.layers[1].self_attn["delta_mem"]
    layer.memory_v_proj = layer["memory_v_proj"] * 3e38 * 1e3
    return model, tokenizer


@pytest.mark.parametrize("history", ["full", "none", 20])
@pytest.mark.parametrize("call", ["send", "after", "remember", "edit"])
def test_a_memory_that_is_not_finite_is_told_with_what_to_do(history, call):
    chat = ChatSession(*overflowing(), history=history)
    chat.send("Fine so far.", 2, read_only=True)
    before = chat.memory
    with pytest.warns(UserWarning, match=r"not finite after this turn.*undo\(\).*reset\(\)") as caught:
        if call == "remember":
            chat.remember("x y z")
        elif call == "edit":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                chat.send("x", 2)
            chat.edit(-2, "y")
        else:
            chat.send("x", 2, write="after" if call == "after" else None)
    assert "\n" not in str(caught[0].message)
    assert not all(mx.isfinite(state).all() for state in chat.memory.values())
    chat.undo()
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat.send("Read only.", 2, read_only=True)


def interrupt(_: mx.array, __: mx.array) -> mx.array:
    raise KeyboardInterrupt


def fail_in_the_reply(chat: ChatSession) -> None:
    with pytest.raises(KeyboardInterrupt):
        chat.send("hi", 3, logits_processors=[interrupt])


def fail_in_the_message(chat: ChatSession) -> None:
    def progress(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.send("hi", 3, prefill_step_size=5, prompt_progress_callback=progress)


LONG = "A much longer system prompt than it was before, with rules."


@every_kind
@pytest.mark.parametrize("history", ["full", "none", 16, 40])
@pytest.mark.parametrize("prompts", [("Be brief.", LONG), (LONG, "Be brief.")])
@pytest.mark.parametrize("fail", [fail_in_the_reply, fail_in_the_message])
def test_a_system_prompt_edited_after_a_first_turn_that_failed(kind, history, prompts, fail):
    old, new = prompts
    chat, fresh = new_chat(kind, history, old), new_chat(kind, history, new)
    fail(chat)
    chat.edit(0, new)
    for turn in range(3):
        tokens = [[each.token for each in one.stream(f"turn {turn}", 6)] for one in (chat, fresh)]
        assert tokens[0] == tokens[1]
        assert all(mx.array_equal(state, fresh.memory[layer]) for layer, state in chat.memory.items())


@every_history
@pytest.mark.parametrize("between", ["send", "undo_send", "reset", "history", "edit", "system"])
@pytest.mark.parametrize("what", ["stream", "stream_regenerate"])
def test_a_reply_that_was_asked_for_before_the_chat_went_on(history, between, what):
    chat = told("qwen3_tsw_qo", history)
    stale = chat.stream("Late.", 4) if what == "stream" else chat.stream_regenerate(4)

    def undo_and_send() -> None:
        text = chat.undo()
        chat.send(text, 10)

    {
        "send": lambda: chat.send("First.", 4),
        "undo_send": undo_and_send,
        "reset": chat.reset,
        "history": lambda: setattr(chat, "history", 7),
        "edit": lambda: chat.edit(1, "Other."),
        "system": lambda: chat.edit(0, "Other."),
    }[between]()
    refused(chat, lambda: next(stale), "the chat has gone on since")


def test_a_reply_that_was_asked_for_before_the_system_prompt_was_changed():
    chat = new_chat()
    stale = chat.stream("Late.", 4)
    chat.edit(0, "Other.")
    refused(chat, lambda: next(stale), "the chat has gone on since")


@every_kind
@every_history
def test_within_read_only_what_is_run_again_is_written_as_it_was(kind, history):
    """`with read_only(model)` is about what is said within it."""
    chats = [told(kind, history), told(kind, history)]
    with read_only(chats[0].model):
        chats[0].edit(1, "Changed.")
        before = chats[0].memory
        chats[0].regenerate(5)
        refused(chats[0], lambda: chats[0].remember("x"), "nothing can be remembered")
    chats[1].edit(1, "Changed.")
    assert same_memory(ChatBefore(before), chats[1], 1e-5)
    chats[1].undo()
    chats[1].send(chats[0].messages[3]["content"], 5, read_only=True)
    assert chats[0].messages == chats[1].messages
    assert same_memory(*chats, 1e-5)
    assert all(
        mx.array_equal(state, chats[0]._state.turns[-1].before.states[layer])
        for layer, state in chats[0].memory.items()
    )


class ChatBefore:
    """A memory as it was, where a chat is expected."""

    def __init__(self, memory: dict[int, mx.array]):
        self.memory = memory


@every_kind
def test_undo_goes_back_to_the_memory_that_was_whatever_history_came_between(kind):
    """Text that is run again for another history does not change what is known of the memory."""
    chat = new_chat(kind, "none")
    memories = []
    for text in ("One is jade.", "Two.", "Three!"):
        memories.append(chat.memory)
        chat.send(text, 4)
    memories.append(chat.memory)
    drift = chat.drift
    chat.history = "full"
    chat.send("Four.", 4)
    assert chat.drift[:3] == drift
    for memory in reversed(memories):
        chat.undo()
        assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())


def rewrite(path: Path, change: Callable[[dict], object], to: Path | None = None) -> Path:
    """Change the JSON of a session file and give it the checksum of what it is now."""
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
        *((("format_version",), value) for value in (True, 2.0, "2", None, 3, 0, [])),
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


def test_options_that_no_file_holds_are_refused_when_it_is_saved(path):
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
    """Something done to one value of a session file: another one, one from elsewhere in it, one less, one more."""
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
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=alterations())
def test_any_altered_json_is_refused_or_a_chat(change, path):
    """What cannot be told from a chat goes on, back and into another file; all else is one ValueError."""
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
        # Of what the template or a window of tokens makes of it.
        assert "\n" not in str(error)


def save_as_version_1(chat: ChatSession, path: Path, with_text: bool) -> None:
    """A session file as the first version wrote it: one message a turn, of which all or nothing was written."""
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


def test_a_reply_that_is_closed_before_it_began_was_never_asked_for():
    chat = told()
    with closing(chat.stream("Never.", 5)):
        pass
    assert chat.messages == told().messages
    assert all(distance(state, told().memory[layer]) == 0 for layer, state in chat.memory.items())
