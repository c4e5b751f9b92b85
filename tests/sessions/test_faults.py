"""Wrong arguments and calls: a ValueError with one line, and the chat is unchanged."""

import warnings
from collections.abc import Callable
from contextlib import closing

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, load, read_only
from tests.conftest import adapter, backbone, distance
from tests.sessions.test_session import every_history, every_kind, loaded, new_chat, same_memory, told

NO_TEXTS = ["\ud800", "half \udfff of one", b"x", 5, None, True, {"a": 1}, ["a"], 2.5]
NO_COUNTS = [0, -1, -7, 2.5, "x", "3", None, True, float("nan"), [1], 10.0]
GO_ON = "What is it, then?"


def refused(chat: ChatSession, call: Callable[[], object], match: str | None = None) -> None:
    """Check that a call raises ValueError and leaves the chat unchanged, bit for bit."""
    messages, memory, segments = chat.messages, chat.memory, chat.segments
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    assert (chat.messages, chat.segments) == (messages, segments)
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())


@pytest.mark.slow
@every_history
@pytest.mark.parametrize("index", range(5))
def test_an_edit_past_the_window(history, index, monkeypatch):
    """For every message: the turns after it would not fit either."""
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


@pytest.mark.slow
@every_history
def test_a_known_reply_past_the_window(history):
    chat = told("qwen3_tsw_qo", history)
    refused(chat, lambda: chat.read_exchange("Hi", "a b " * 2600), "message with its reply is .* the model's window")
    assert chat.send(GO_ON, 5) == told("qwen3_tsw_qo", history).send(GO_ON, 5)


@pytest.mark.slow
@pytest.mark.parametrize("count", NO_COUNTS)
def test_steps_that_are_refused(count):
    chat = told()
    for call in (
        lambda: chat.send("x", 2, prefill_step_size=count),
        lambda: chat.stream("x", 2, prefill_step_size=count),
        lambda: chat.regenerate(2, prefill_step_size=count),
        lambda: chat.stream_regenerate(2, prefill_step_size=count),
        lambda: chat.remember("x", prefill_step_size=count),
    ):
        refused(chat, call, "prefill_step_size is")


@pytest.mark.slow
@pytest.mark.parametrize("count", [count for count in NO_COUNTS if count != -1])
def test_reply_lengths_that_are_refused(count):
    chat = told()
    for call in (
        lambda: chat.send("x", count),
        lambda: chat.stream("x", max_tokens=count),
        lambda: chat.regenerate(count),
        lambda: chat.stream_regenerate(max_tokens=count),
    ):
        refused(chat, call, "max_tokens is")


@pytest.mark.slow
def test_a_size_of_the_cache_is_refused():
    chat = told()
    for call in (chat.send, chat.stream):
        refused(chat, lambda call=call: call("x", 2, max_kv_size=5), "max_kv_size is 5, .* history of the chat")
    refused(chat, lambda: chat.regenerate(2, max_kv_size=5), "max_kv_size is 5")
    assert chat.send("x", 2, max_kv_size=None)


@pytest.mark.slow
def test_a_stop_text_is_not_its_letters():
    whole = new_chat().send("Hello there. How are you?", 30)
    stop = whole[5:8]
    for given_as in (stop, [stop], (stop,)):
        assert new_chat().send("Hello there. How are you?", 30, stop=given_as) == whole[: whole.index(stop)]
    # The same letters in another order: each letter is in the reply, and the text is not.
    absent = next(text for text in (stop[::-1], whole[7] + "\x00") if text not in whole)
    assert new_chat().send("Hello there. How are you?", 30, stop=absent) == whole
    chat = told()
    assert chat.regenerate(10, stop=absent) == told().messages[-1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 5, None, b"ab", [5], [None], {"a": 1}, iter(["a"])])
def test_stop_texts_that_are_refused(stop):
    chat = told()
    refused(chat, lambda: chat.send("x", 2, stop=stop), "stop is")
    refused(chat, lambda: chat.regenerate(2, stop=stop), "stop is")


@pytest.mark.slow
@pytest.mark.parametrize("text", NO_TEXTS, ids=repr)
def test_texts_that_are_refused(text):
    chat = told()
    for call in (
        lambda: chat.send(text, 2),
        lambda: chat.send([{"role": "user", "content": text}], 2),
        lambda: chat.remember(text),
        lambda: chat.remember([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]),
        *(lambda index=index: chat.edit(index, text) for index in range(len(chat.messages))),
    ):
        # A list or a dict may be messages, but none of these is.
        refused(chat, call)
    if text is not None:
        with pytest.raises(ValueError, match="the system prompt is"):
            ChatSession(*loaded(), system=text)


@pytest.mark.parametrize("tools", ["abc", 5, [1], ["ab"], {"a": 1}, [{"a": {1}}], [{"a": "\ud800"}]], ids=repr)
def test_tools_that_are_refused(tools):
    with pytest.raises(ValueError, match="the tools are not a list of JSON objects"):
        ChatSession(*loaded(), tools=tools)


def test_tools_are_copied():
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    chat = ChatSession(*loaded(), tools=tools)
    tools[0]["function"]["name"] = "other"
    assert chat._state.template.tools[0]["function"]["name"] == "look"


@pytest.mark.parametrize("index", [1.5, "a", None, True, 5, -6, [0]])
def test_message_indices_that_are_refused(index):
    chat = told()
    refused(chat, lambda: chat.edit(index, "x"), "there is no message")


@pytest.mark.parametrize("write", [5, ["all"], "ALL", "", b"all"], ids=repr)
def test_write_modes_that_are_refused(write):
    chat = told()
    refused(chat, lambda: chat.send("x", 2, write=write), "write is")
    refused(chat, lambda: chat.remember("x", write=write), "write is")
    refused(chat, lambda: setattr(chat, "write", write), "write is")
    with pytest.raises(ValueError, match="write is"):
        ChatSession(*loaded(), write=write)


@pytest.mark.slow
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
def test_memories_that_are_refused(memory):
    chat = told()
    refused(chat, lambda: setattr(chat, "memory", memory))
    with pytest.raises(ValueError, match=r"memory|state"):
        ChatSession(*loaded(), memory=memory)


def overflowing() -> tuple:
    """A model with a layer that writes values too large for float32."""
    model, tokenizer = load(backbone(), adapter=adapter())
    layer = model.layers[1].self_attn["delta_mem"]
    layer.memory_v_proj = layer["memory_v_proj"] * 3e38 * 1e3
    return model, tokenizer


@pytest.mark.parametrize("history", ["full", "none", 20])
@pytest.mark.parametrize("call", ["send", "after", "remember", "edit"])
def test_a_memory_that_is_not_finite_gives_a_warning(history, call):
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


@pytest.mark.parametrize("save_kv", [False, True])
def test_a_reply_whose_memory_is_not_finite_is_edited_in_a_chat_from_a_file(save_kv, tmp_path):
    model, tokenizer = overflowing()
    chat = ChatSession(model, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in ("x", "y"):
            chat.send(text, 2)
        chat.save(tmp_path / "chat.safetensors", save_kv)
        chat = ChatSession.load(model, tokenizer, tmp_path / "chat.safetensors")
        # A file has no such numbers.
        assert chat.drift[-1] is None
        chat.edit(3, "Another reply.")
    assert chat.messages[3]["content"] == "Another reply."
    assert chat.drift[-1] is not None


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


@pytest.mark.slow
@pytest.mark.parametrize("begin", [lambda chat: chat.send("Hi", 2), lambda chat: chat.remember("Hi")])
@pytest.mark.parametrize(("system", "later"), [("Be brief.", r"use edit\(0, text\)"), (None, "make another chat")])
def test_a_system_prompt_is_set_before_the_first_turn(begin, system, later):
    chat = new_chat(system="Old.")
    chat.system = system
    assert chat.messages == new_chat(system=system).messages
    begin(chat)
    for text in ("New.", None):
        refused(chat, lambda text=text: setattr(chat, "system", text), f"expected a chat without turns: {later}")
    chat.reset()
    chat.system = "New."
    assert chat.send("Hi", 3) == new_chat(system="New.").send("Hi", 3)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@every_kind
@every_history
def test_within_read_only_what_is_run_again_is_written_as_it_was(kind, history):
    """`with read_only(model)` has an effect on new turns only."""
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
    """A memory in the place of a chat."""

    def __init__(self, memory: dict[int, mx.array]):
        self.memory = memory


@every_kind
def test_undo_goes_back_to_the_memory_that_was_whatever_history_came_between(kind):
    """Running text again for another history does not change the memories between turns."""
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


@pytest.mark.slow
def test_a_reply_that_is_closed_before_it_began_was_never_asked_for():
    chat = told()
    with closing(chat.stream("Never.", 5)):
        pass
    assert chat.messages == told().messages
    assert all(distance(state, told().memory[layer]) == 0 for layer, state in chat.memory.items())
