"""Chats as dicts: what is in them, what is read from them, and what is refused."""

import json

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.sessions.replies.beginning import Beginning
from tests.conftest import adapter, backbone, distance

# Reading a reply in one piece adds the same numbers in another order than generating it: with float32 on any CPU, the
# states of these few tokens (norms of about 2) differ by some 1e-6.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def loaded():
    return load(backbone(), adapter=adapter())


@pytest.fixture
def chat(loaded) -> ChatSession:
    chat = ChatSession(*loaded, system="Be brief.", history=30, write="after")
    chat.title = "Words"
    chat.send("My word is jade.", 6)
    chat.remember([{"role": "user", "content": "I like figs."}, {"role": "assistant", "content": "Noted."}], "user")
    chat.send("Grüße, 你好 🦊!\r\n", 5, write="user")
    return chat


def through_json(chat: ChatSession) -> dict:
    return json.loads(json.dumps(chat.to_dict()))


@pytest.mark.parametrize("history", ["full", "none", 30])
def test_a_chat_that_is_read_again_is_the_same_chat(chat, loaded, history):
    chat.history = history
    chat.send("And now?", 4)
    again = ChatSession.from_dict(*loaded, through_json(chat))
    assert (again.title, again.system, again.history, again.write) == ("Words", "Be brief.", history, "after")
    assert again.messages == chat.messages
    assert [(turn.write, turn.remembered) for turn in again.turns] == [
        (turn.write, turn.remembered) for turn in chat.turns
    ]
    assert again.to_dict() == chat.to_dict()
    again.history = chat.history = "full"
    assert again.send("Why?", 5) == chat.send("Why?", 5)


def test_a_turn_may_have_null_for_its_calls(loaded):
    """As in OpenAI's form."""
    chat = ChatSession.from_dict(*loaded, OWN | {"turns": [TURN | {"tool_calls": None}]})
    assert chat.turns[0].tool_calls == ()


def test_the_memory_is_that_of_the_chat_up_to_rounding(chat, loaded):
    again = ChatSession.from_dict(*loaded, through_json(chat))
    assert all(distance(state, chat.memory[layer]) < ROUNDING for layer, state in again.memory.items())
    empty = ChatSession.from_dict(*loaded, through_json(chat) | {"turns": []})
    assert any(distance(state, chat.memory[layer]) > 0.1 for layer, state in empty.memory.items())


def test_the_tokens_of_a_reply_count_only_if_they_are_its_text(chat, loaded):
    _, tokenizer = loaded
    content = through_json(chat)
    ids = content["turns"][0]["reply_ids"]
    assert len(ids) == 6
    for wrong in ([1, 2], [-1], [10**9], ids[:-1]):
        content["turns"][0]["reply_ids"] = wrong
        again = ChatSession.from_dict(*loaded, content)
        assert again.messages == chat.messages
        assert list(again.turns[0].reply_ids) == tokenizer.encode(chat.turns[0].reply, add_special_tokens=False)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_reply_is_read_from_the_tokens_that_were_generated(loaded, stopped, special):
    _, tokenizer = loaded
    chat = ChatSession(*loaded)
    # Letter by letter: the text alone has other tokens.
    said = [*"One two", "<|im_start|>" if special else "", *" three four"]
    ids = [token for text in said for token in tokenizer.encode(text, add_special_tokens=False)]
    stop = "three" if stopped else ()
    chat.send("Count.", len(ids), stop=stop, logits_processors=[Beginning(ids)])
    turn = chat.turns[0]
    assert ("three" in turn.reply) != stopped
    assert tuple(tokenizer.encode(turn.reply, add_special_tokens=False)) != turn.reply_ids
    again = ChatSession.from_dict(*loaded, through_json(chat))
    assert (again.turns[0].reply_ids, again.messages) == (turn.reply_ids, chat.messages)
    assert all(distance(state, chat.memory[layer]) < ROUNDING for layer, state in again.memory.items())
    assert again.to_dict() == chat.to_dict()
    # Tokens with text that the export does not show are not read; exports of earlier versions have no such text.
    content = through_json(chat)
    del content["turns"][0]["reply_rest"]
    assert ChatSession.from_dict(*loaded, content).messages == chat.messages
    content["turns"][0]["reply_ids"] += tokenizer.encode(" Hidden.")
    assert ChatSession.from_dict(*loaded, content).turns[0].reply_ids != tuple(content["turns"][0]["reply_ids"])


@pytest.mark.parametrize("text", ["\ufeffYes.", "a\x00b", "\x1b[0m \r", "", " "], ids=ascii)
def test_every_text_that_a_chat_takes_is_read_again(loaded, text):
    chat = ChatSession(*loaded, system=text, history="none")
    chat.conversation = text
    chat.read_exchange(
        [{"role": "user", "content": f"Hi{text}", "name": text}, {"role": "tool", "content": text}], text
    )
    chat.remember(f"{text} Hi")
    chat.send("Hi", 2)
    chat.edit(-1, f"{text}Hi")
    again = ChatSession.from_dict(*loaded, through_json(chat))
    assert again.to_dict() == chat.to_dict()
    assert (again.messages, again.conversation) == (chat.messages, text)
    assert all(distance(state, chat.memory[layer]) < ROUNDING for layer, state in again.memory.items())


@pytest.mark.parametrize("history", ["none", 30])
def test_a_later_system_message_is_read_and_read_again(loaded, history):
    chat = ChatSession(*loaded, system="Base.", history=history)
    chat.send("Hello", 4)
    chat.send([{"role": "system", "content": "NEWRULE"}, {"role": "user", "content": "Hi"}], 4)
    again = ChatSession.from_dict(*loaded, through_json(chat))
    for each in (chat, again):
        assert "NEWRULE" in loaded[1].decode(each.turns[-1].opening.ids)
        assert each.turns[-1].opening_written[0]
    assert again.segments == chat.segments
    assert all(distance(state, chat.memory[layer]) < ROUNDING for layer, state in again.memory.items())


def test_a_chat_goes_on_with_another_adapter(chat):
    model, tokenizer = load(backbone(), adapter=adapter("qwen3_ssw_msg"))
    again = ChatSession.from_dict(model, tokenizer, through_json(chat))
    assert again.messages == chat.messages
    assert again.send("Why?", 3)


def test_messages_of_other_programs_are_read(loaded):
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "6:20", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is 6:20."},
    ]
    for content in (messages, {"messages": messages}, {"messages": messages, "history": "none", "title": "Time"}):
        chat = ChatSession.from_dict(*loaded, content)
        texts = ["Be kind.", "What time is it?", "", "6:20", "It is 6:20."]
        assert [message["content"] for message in chat.messages] == texts
        assert chat.turns[0].tool_calls[0]["function"] == {"name": "time", "arguments": '{"zone": "UTC"}'}
        assert ChatSession.from_dict(*loaded, through_json(chat)).messages == chat.messages
    assert (chat.history, chat.title) == ("none", "Time")


def test_progress_counts_turns(chat, loaded):
    seen = []
    ChatSession.from_dict(*loaded, chat.to_dict(), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_memory_that_was_set_is_in_no_export(chat, loaded):
    chat.memory = {layer: mx.ones(state.shape) for layer, state in chat.memory.items()}
    with pytest.raises(ValueError, match="a memory was set, and an export has no memory; save a session file"):
        chat.to_dict()
    chat.send("On.", 2)
    with pytest.raises(ValueError, match="a memory was set before turn 4"):
        chat.to_dict()


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_prompt_beside_the_messages_is_read(loaded, system):
    """Anthropic's form has it there."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    chat = ChatSession.from_dict(*loaded, {"system": system, "messages": messages})
    assert (chat.system, len(chat.turns)) == ("Be brief.", 1)
    first = {"role": "system", "content": "Be brief."}
    with pytest.raises(ValueError, match="a system prompt beside its messages and another as the first of them"):
        ChatSession.from_dict(*loaded, {"system": system, "messages": [first, *messages]})


TURN = {"messages": [{"role": "user", "content": "Hi"}], "reply": "Hello"}
OWN = {"format": "mlx_deltamem chat", "version": 1, "system": None, "turns": [TURN]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the chat is nothing without messages; expected an exported chat, or messages"),
        ({}, "is an object without messages"),
        ("text", "is a text without messages"),
        ({"messages": "text"}, "without messages"),
        ([], "the list of messages is empty"),
        ([{"role": "user", "content": "Hi"}], "the messages end without a reply"),
        ([{"role": "assistant", "content": "Hi"}], r"messages\[0\] is a reply without a message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": 3}], r"messages\[1\] is of type int"),
        (OWN | {"version": 2}, "is of export version 2; expected 1"),
        (OWN | {"version": True}, "is of export version True"),
        (OWN | {"turns": "all"}, "the turns of the chat are a text; expected a list"),
        (OWN | {"turns": [3]}, "turn 1 of the chat is a number; expected an object"),
        (OWN | {"turns": [TURN, {}]}, "turn 2 of the chat: the messages are None"),
        (OWN | {"turns": [TURN | {"reply": None}]}, "the reply of turn 1 of the chat is nothing"),
        (OWN | {"turns": [TURN | {"reply": "\ud800"}]}, "the reply of turn 1 of the chat has half a character"),
        (OWN | {"conversation": "\ud800"}, "the conversation of the chat has half a character"),
        (OWN | {"turns": [TURN | {"reply_ids": ["1"]}]}, "reply_ids of turn 1 of the chat are not a list of whole"),
        (OWN | {"turns": [TURN | {"tool_calls": [3]}]}, "turn 1 of the chat: tool call 0 of the message is not"),
        (OWN | {"turns": [TURN | {"tool_calls": {"a": 3}}]}, "turn 1 of the chat: the tool_calls"),
        (OWN | {"turns": [TURN | {"write": "some"}]}, "turn 1 of the chat: write is 'some'"),
        (OWN | {"turns": [TURN | {"remembered": 1}]}, "remembered of turn 1 of the chat is a number"),
        (OWN | {"turns": [TURN | {"remembered": True}]}, "was remembered and has a reply"),
        (OWN | {"turns": [TURN | {"remembered": True, "reply": "", "write": "none"}]}, "for a text to remember"),
        (OWN | {"turns": [TURN | {"conversation": 3}]}, "the conversation of turn 1 of the chat is a number"),
        (OWN | {"history": 0}, "history is 0"),
        (OWN | {"write": None}, "write is None"),
        (OWN | {"system": 3}, "the system prompt is of type int"),
        (OWN | {"title": "a\nb"}, "the title has 3 characters in 2 lines"),
        (OWN | {"title": "x" * 201}, "expected one line of at most 200"),
        (OWN | {"template_options": []}, "the template_options of the chat are an empty list"),
        (OWN | {"template_options": {"messages": 1}}, "the template options name messages"),
        (OWN | {"template_options": {"system": 1}}, "the exported chat was altered: its template options name system"),
        (OWN | {"template_options": {"chat_template": "{{ 1 }}"}}, "the exported chat brings a chat template"),
        (OWN | {"template_options": {"tools": 1}}, "the tools are not a list"),
        (OWN | {"turns": [TURN | {"reply": "word " * 5000}]}, "the model's window is"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(loaded, content, message):
    with pytest.raises(ValueError, match=message) as error:
        ChatSession.from_dict(*loaded, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("at", [2, -3])
def test_a_chat_branches_at_an_earlier_reply(chat, loaded, at):
    branch = chat.fork(at)
    alone = ChatSession(*loaded, system="Be brief.", history=30, write="after")
    alone.send("My word is jade.", 6)
    assert branch.messages == alone.messages
    assert all(mx.array_equal(state, alone.memory[layer]) for layer, state in branch.memory.items())
    assert branch.send("Which?", 5) == alone.send("Which?", 5)
    assert len(chat.turns) == 3


def test_a_chat_branches_at_replies_only(chat):
    assert chat.fork(-1).messages == chat.messages
    for at in (0, 1, 3):
        with pytest.raises(ValueError, match=f"message {at} is not a reply"):
            chat.fork(at)
    for at in (5, -6, True):
        with pytest.raises(ValueError, match=f"there is no message {at}; the chat has 5"):
            chat.fork(at)


def test_a_title_is_saved_with_the_chat(chat, loaded, tmp_path):
    file = tmp_path / "chat.safetensors"
    chat.save(file)
    assert ChatSession.load(*loaded, file).title == "Words"
    for wrong in (3, None, "a\nb"):
        with pytest.raises(ValueError, match="the title"):
            chat.title = wrong
    chat.title = " "
    assert chat.title == ""


def test_a_file_of_a_chat_is_deleted_unless_someone_else_has_saved_it(chat, loaded, tmp_path):
    file = tmp_path / "chat.safetensors"
    chat.delete(file)
    chat.save(file)
    other = ChatSession.load(*loaded, file)
    other.save(file)
    with pytest.raises(ValueError, match="was saved by someone else"):
        chat.delete(file)
    other.delete(file)
    assert not file.exists()
    other.save(file)
