"""Tools in a chat: the model calls them and gets their results, and turns can be saved and taken back."""

import json
from itertools import count

import mlx.core as mx
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools
from transformers import AutoTokenizer

from mlx_deltamem import ChatSession
from tests.conftest import backbone, distance
from tests.sessions.test_session import HISTORIES, loaded

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Cádiz"}}\n</tool_call>'
QUESTION = "How warm is it in Cádiz, and in Vigo?"
RESULTS = [
    {"role": "tool", "content": "21 degrees", "tool_call_id": "a"},
    {"role": "tool", "content": [{"type": "text", "text": "17 "}, {"type": "text", "text": "degrees"}]},
]


def chat_with_tools(history: str | int = "full", **options: object) -> ChatSession:
    model, _ = loaded()
    marks = {"tool_call_start": json_tools.tool_call_start, "tool_call_end": json_tools.tool_call_end}
    tokenizer = TokenizerWrapper(
        AutoTokenizer.from_pretrained(backbone()), **marks, tool_parser=json_tools.parse_tool_call
    )
    return ChatSession(model, tokenizer, history=history, **{"tools": TOOLS} | options)


def scripted(chat: ChatSession, text: str) -> dict[str, object]:
    """Options of `send` that make the model say a text."""
    ids = [*chat.tokenizer.encode(text, add_special_tokens=False), chat.tokenizer.eos_token_id]
    # mlx-lm asks for one token more than it needs.
    place = count()

    def say(_: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == ids[min(next(place), len(ids) - 1)], 1e9, logits)

    return {"max_tokens": len(ids) + 1, "logits_processors": [say]}


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_a_tool_is_called_and_its_results_are_said(history, tmp_path):
    chat = chat_with_tools(history)
    assert chat.tool_calls == []
    reply = chat.send(QUESTION, **scripted(chat, f"Let me look.{CALL}{CALL}"))
    assert reply == "Let me look."
    functions = [call["function"] for call in chat.tool_calls]
    assert [function["name"] for function in functions] == ["weather", "weather"]
    assert [json.loads(function["arguments"]) for function in functions] == [{"town": "Cádiz"}] * 2
    said = chat.messages[-1]
    assert (said["role"], said["content"], said["tool_calls"]) == ("assistant", reply, chat.tool_calls)
    chat.send(RESULTS, 8)
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert chat.messages[3]["content"] == "17 degrees"
    assert chat.tool_calls == []
    # Whatever the history, the model sees the question and the calls before the results.
    seen = chat._state.cache[0].offset
    assert seen >= len(chat.segments.ids)
    chat.save(tmp_path / "chat.safetensors")
    again = ChatSession.load(chat.model, chat.tokenizer, tmp_path / "chat.safetensors")
    assert again.messages == chat.messages
    assert again.send("And now?", 6) == chat.send("And now?", 6)
    chat.undo()
    assert chat.undo() == "21 degrees\n17 degrees"
    assert chat.tool_calls == said["tool_calls"]


def test_the_calls_are_those_of_the_last_reply_of_the_conversation():
    chat = chat_with_tools()
    chat.send(QUESTION, **scripted(chat, CALL))
    called = chat.tool_calls
    assert [call["function"]["name"] for call in called] == ["weather"]
    chat.remember("A note.")
    assert chat.tool_calls == called
    chat.conversation = "other"
    assert chat.tool_calls == []
    chat.send("Hello.", 2)
    chat.conversation = ""
    assert chat.tool_calls == called


def test_only_the_user_is_written_of_a_turn_with_results():
    chat = chat_with_tools(write="user")
    chat.send(QUESTION, **scripted(chat, CALL))
    before = chat.memory
    chat.send(RESULTS, 6)
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


def test_the_tools_are_in_the_prompt():
    template = (
        "{% if tools %}[{{ tools[0].function.name }}]{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chats = [chat_with_tools(chat_template=template), chat_with_tools(chat_template=template, tools=None)]
    for chat in chats:
        chat.send("Hi", 2)
    assert chats[0].tokenizer.decode(chats[0].segments.ids).startswith("[weather]<|im_start|>user")
    assert chats[1].tokenizer.decode(chats[1].segments.ids).startswith("<|im_start|>user")


WRITES_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Vigo"}}}


@pytest.mark.parametrize(
    ("options", "reply", "written"),
    [
        ({"chat_template": WRITES_CALLS}, "Let me look.", "Let me look.\n<tool_call>\n{}\n</tool_call>"),
        ({"chat_template": WRITES_CALLS}, "", "<tool_call>\n{}\n</tool_call>"),
        # This template writes no calls.
        ({}, "Let me look.", "Let me look.\n{}"),
    ],
)
def test_calls_of_a_known_reply_are_read_as_the_template_writes_them(options, reply, written):
    chat = chat_with_tools(**options)
    chat.read_exchange(QUESTION, reply, tool_calls=[CALLED])
    assert chat.tokenizer.decode(chat.turns[0].reply_ids) == written.format(json.dumps(CALLED["function"]))
    assert chat.messages[-1]["content"] == reply
    # As in a reply that was generated, the arguments are JSON text.
    [call] = chat.tool_calls
    assert json.loads(call["function"]["arguments"]) == {"town": "Vigo"}
    chat.send(RESULTS, 4)
    assert len(chat.messages) == 5


def test_without_tools_a_call_is_text():
    chat = chat_with_tools(tools=None)
    assert chat.send(QUESTION, **scripted(chat, CALL)) == CALL
    assert chat.tool_calls == []


def test_a_message_in_openais_form_equals_its_text():
    chats = [chat_with_tools(tools=None) for _ in range(2)]
    chats[0].send("Hello there.", 6)
    chats[1].send([{"role": "user", "content": [{"type": "text", "text": "Hello there."}]}], 6)
    assert chats[0].messages == chats[1].messages
    assert all(distance(state, chats[1].memory[layer]) == 0 for layer, state in chats[0].memory.items())


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "assistant", "content": "Hi"}], "a message of the assistant among those to reply to"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
        ([{"role": "robot", "content": "Hi"}], "robot"),
        ([], "the list of messages is empty"),
    ],
)
def test_messages_that_are_refused(messages, problem):
    chat = chat_with_tools()
    with pytest.raises(ValueError, match=problem) as error:
        chat.send(messages)
    assert "\n" not in str(error.value) and chat.messages == []


@pytest.mark.slow
def test_an_exported_chat_is_read_with_its_calls():
    chat = chat_with_tools()
    chat.send(QUESTION, **scripted(chat, f"Let me look.{CALL}"))
    chat.send(RESULTS, 6)
    content = json.loads(json.dumps(chat.to_dict()))
    again = ChatSession.from_dict(chat.model, chat.tokenizer, content)
    assert [turn.reply_ids for turn in again.turns] == [turn.reply_ids for turn in chat.turns]
    assert again.messages == chat.messages
    assert all(mx.allclose(state, chat.memory[layer], atol=1e-5) for layer, state in again.memory.items())
    # Another model's tokens are not taken. The calls are then read as this template writes them.
    content["turns"][0]["reply_ids"] = [5]
    again = ChatSession.from_dict(chat.model, chat.tokenizer, content)
    assert '"weather"' in chat.tokenizer.decode(again.turns[0].reply_ids)
    assert again.messages == chat.messages
