"""Tool loops behind the engine: the calls, the results and the replies are one turn."""

import json
from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_deltamem.serving import reply_turn
from mlx_deltamem.serving.exchange import Done
from mlx_deltamem.sessions.turns.drift import changes
from tests.serving.conftest import READ, Running
from tests.sessions.test_session import HISTORIES
from tests.sessions.test_tools import CALL, QUESTION, TOOLS, chat_with_tools, scripted

RESULT = {"role": "tool", "content": "21 degrees", "tool_call_id": "a"}
CALLED = {
    "role": "assistant",
    "content": "Let me look.",
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"town": "Cádiz"})}}
    ],
}
USER = {"role": "user", "content": QUESTION}


@pytest.fixture
def server(running, monkeypatch) -> Callable[..., tuple[Running, Callable[[str], None]]]:
    """A function that starts an engine with tools, and gives it with a function that sets what the model says."""

    def start(**options: object) -> tuple[Running, Callable[[str], None]]:
        chat = chat_with_tools()
        started = running(tokenizer=chat.tokenizer, **options)

        def say(text: str) -> None:
            processors = scripted(chat, text)["logits_processors"]
            monkeypatch.setattr(reply_turn, "processors_of", lambda sampling: processors)

        return started, say

    return start


def ask(server: Running, *said: str | dict, memory: str = "anna", **options: object) -> tuple[str, Done]:
    return server.ask(*said, memory=memory, tools=tuple(TOOLS), max_tokens=200, **options)


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_a_tool_loop_is_one_turn(server, history):
    running, say = server(history=history)
    say(f"Let me look.{CALL}")
    assert ask(running, USER)[1].written
    say("21 degrees.")
    _, done = ask(running, USER, CALLED, RESULT)
    chat = running.memories.get("anna").chat
    if history == "full":
        # Nothing of the earlier messages runs again.
        assert done.read_tokens == len(chat.turns[-1].opening.ids)
    [turn] = running.run(running.service.turns("anna"))[0]
    assert [message["role"] for message in turn.messages] == ["user", "assistant", "tool", "assistant"]
    function = turn.messages[1]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"town": "Cádiz"})
    assert (turn.messages[-1]["content"], turn.id) == ("21 degrees.", done.turn)
    assert running.run(running.service.memory("anna"))[0].turns == 1
    [drift] = running.run(running.service.drift("anna"))[0]["turns"]
    written = list(chat.memory.values())
    expected = changes(list(map(mx.zeros_like, written)), written)
    assert list(drift["changed"].values()) == pytest.approx(list(expected.values()))
    say("Nothing.")
    ask(running, USER, CALLED, RESULT, {"role": "assistant", "content": "21 degrees."}, "And now?")
    assert [len(turn.messages) for turn in running.run(running.service.turns("anna"))[0]] == [4, 2]
    for left in (1, 0):
        assert running.run(running.service.undo("anna", None))[0].turns == left
    assert not any(state.any() for state in chat.memory.values())


@pytest.mark.slow
def test_the_turn_of_another_chat_stays_when_a_tool_loop_is_taken_back(server):
    running, say = server()
    say(f"Let me look.{CALL}")
    ask(running, USER)
    say("Good.")
    ask(running, "My word is jade.")
    alone = running.run(running.service.turns("anna"))[0][1]
    say("21 degrees.")
    ask(running, USER, CALLED, RESULT)
    turns = running.run(running.service.turns("anna"))[0]
    # The loop ends last.
    assert [len(turn.messages) for turn in turns] == [2, 4] and turns[0].messages == alone.messages
    running.run(running.service.undo("anna", None))
    [turn] = running.run(running.service.turns("anna"))[0]
    assert turn.messages == alone.messages
    chat = chat_with_tools()
    chat.send("My word is jade.", **scripted(chat, "Good."))
    found = running.memories.get("anna").chat.memory
    assert all(mx.allclose(state, found[layer], atol=1e-5) for layer, state in chat.memory.items())


@pytest.mark.slow
def test_a_tool_loop_that_the_memory_does_not_know_is_written_once(server):
    running, say = server()
    said = [USER, CALLED, RESULT, {"role": "assistant", "content": "21 degrees."}, {"role": "user", "content": "Ah."}]
    say("Good.")
    ask(running, *said)
    chat = running.memories.get("anna").chat
    assert '"weather"' in chat.tokenizer.decode(chat.turns[0].reply_ids)
    _, done = ask(running, *said, {"role": "assistant", "content": "Good."}, "And now?")
    assert done.read_tokens == len(chat.turns[-1].opening.ids)
    assert [len(turn.messages) for turn in running.run(running.service.turns("anna"))[0]] == [4, 2, 2]


@pytest.mark.slow
def test_a_tool_loop_that_only_reads_changes_nothing(server):
    running, say = server()
    say(f"Let me look.{CALL}")
    ask(running, USER)
    say("21 degrees.")
    ask(running, USER, CALLED, RESULT, mode=READ)
    assert [len(turn.messages) for turn in running.run(running.service.turns("anna"))[0]] == [2]
