"""Chats that only read a memory: at once, and without running their earlier turns again."""

import asyncio

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving import readers
from mlx_deltamem.serving.exchange import Piece, RefusedError, ReplyRequest, Sampling
from mlx_deltamem.sessions.reading import running as running_turns
from mlx_deltamem.sessions.text.messages import parse_messages
from tests.serving.conftest import OFF, READ, Running, chat_of, every_history, plain_chat
from tests.sessions.test_session import same_memory

FACT, QUESTION = "My word is jade.", "What is it?"


def told(history: str | int = "full") -> ChatSession:
    """A chat with a fact, in which another conversation goes on."""
    chat = plain_chat(history)
    chat.send(FACT, 8)
    chat.conversation = "reader"
    return chat


def read(chat: ChatSession, text: str, tokens: int = 8) -> str:
    return "".join(part.text for part in chat.stream(text, tokens, read_only=True))


def test_who_only_reads_does_not_wait_for_a_turn(running):
    server = running()
    server.ask(FACT, memory="anna")

    async def meanwhile() -> tuple[list, int]:
        # A reply that does not end by itself.
        endless = Sampling(logit_bias=dict.fromkeys(server.service.tokenizer.eos_token_ids, -100.0))
        request = ReplyRequest(parse_messages("Hello there."), memory="anna", max_tokens=-1, sampling=endless)
        writing = server.service.reply(request)
        assert isinstance(await anext(writing), Piece)
        reading = [
            server.asking(QUESTION, memory="anna", mode=READ),
            server.asking(QUESTION, memory="anna", mode=READ, goes_on=False),
            server.asking(memory="anna", mode=READ, text="Once upon a time"),
            server.asking(FACT, "No.", QUESTION, memory="anna", mode=READ),
        ]
        found = await asyncio.gather(*reading)
        active = server.engine.active
        await writing.aclose()
        return found, active

    found, active = asyncio.run(meanwhile())
    assert active == 1, "the turn that writes has not ended"
    expected = read(told(), QUESTION)
    assert [text for text, _ in found[:2]] == [expected, expected]
    assert not any(done.written for _, done in found)
    assert all(text for text, _ in found[2:])


@every_history
def test_earlier_turns_do_not_run_again(running, history):
    server, chat = running(history=history), told(history)
    server.ask(FACT, memory="anna")
    before, said = chat_of(server, "anna").memory, []
    for text in (QUESTION, "Hello there.", "And now?"):
        reply, done = server.ask(*said, text, memory="anna", mode=READ)
        assert reply == read(chat, text)
        said += [text, reply]
        if history == "full":
            assert done.read_tokens == len(chat.turns[-1].opening.ids)
            assert done.prompt_tokens == sum(turn.length for turn in chat.turns[1:-1]) + done.read_tokens
    assert not done.written and done.revision == 1
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in before.items())


def test_another_question_and_another_reply_are_exact(running):
    server, chat = running(), told()
    server.ask(FACT, memory="anna")
    first, _ = server.ask(QUESTION, memory="anna", mode=READ)
    read(chat, QUESTION)
    server.ask(QUESTION, first, "Hello there.", memory="anna", mode=READ)
    for text in ("Hello you.", "Hello there."):
        reply, _ = server.ask(QUESTION, first, text, memory="anna", mode=READ)
        assert reply == read(chat.fork(), text)


def test_a_memory_that_has_changed_is_read_as_it_is_now(running):
    server, chat = running(), plain_chat()
    server.ask(FACT, memory="anna")
    first, done = server.ask(QUESTION, memory="anna", mode=READ)
    reader = told()
    read(reader, QUESTION)
    server.ask("My town is Oslo.", memory="anna")
    chat.send(FACT, 8)
    chat.conversation = "other"
    chat.send("My town is Oslo.", 8)
    running_turns.run_again(chat.state, reader.turns[-1])
    expected = read(chat, "And now?")
    assert server.ask(QUESTION, first, "And now?", memory="anna", mode=READ)[0] == expected
    # The copy of before the change is gone, and its turn is known in the new one.
    assert server.ask("And now?", memory="anna", mode=READ, continues=done.turn)[0] == expected


def test_ids_of_turns_go_on_in_branches(running):
    server, chat = running(), told()
    server.ask(FACT, memory="anna")
    _, first = server.ask(QUESTION, memory="anna", mode=READ)
    read(chat, QUESTION)
    fork = chat.fork()
    reply, second = server.ask("Hello there.", memory="anna", mode=READ, continues=first.turn)
    assert reply == read(fork, "Hello there.")
    for text in ("Hello you.", "Good."):
        assert server.ask(text, memory="anna", mode=READ, continues=first.turn)[0] == read(chat.fork(), text)
    reply, _ = server.ask("And now?", memory="anna", mode=READ, continues=second.turn)
    assert reply == read(fork, "And now?")
    with pytest.raises(RefusedError, match="no turn nothing"):
        server.ask("And now?", memory="anna", mode=READ, continues="nothing")


def test_a_turn_that_was_written_can_be_edited_by_a_reader(running):
    server, chat = running(), plain_chat()
    first, _ = server.ask(FACT, memory="anna", chat="c")
    second, done = server.ask(FACT, first, "Hello there.", memory="anna", chat="c")
    chat.send(FACT, 8)
    for _ in range(2):
        reply, _ = server.ask(FACT, first, QUESTION, memory="anna", chat="c", mode=READ)
        assert reply == read(chat.fork(), QUESTION)
    assert len(chat_of(server, "anna").turns) == done.revision == 2
    chat.send("Hello there.", 8)
    reply, _ = server.ask(FACT, first, "Hello there.", second, "And now?", memory="anna", chat="c", mode=READ)
    assert reply == read(chat, "And now?")


def test_an_error_leaves_the_copy(running):
    server, chat = running(), told()
    server.ask(FACT, memory="anna")
    first, _ = server.ask(QUESTION, memory="anna", mode=READ)
    read(chat, QUESTION)
    for text in ("word " * 20_000, ""):
        with pytest.raises((RefusedError, ValueError)):
            server.ask(QUESTION, first, text, memory="anna", mode=READ)
    reply, _ = server.ask(QUESTION, first, "And now?", memory="anna", mode=READ)
    assert reply == read(chat, "And now?")


def test_a_private_memory_is_read_too(running):
    server, chat = running(history="none"), plain_chat("none")
    first, done = server.ask(FACT)
    chat.send(FACT, 8)
    for options in ({"goes_on": False}, {"goes_on": True}, {"goes_on": False, "continues": done.turn}):
        said = () if "continues" in options else (FACT, first)
        reply, asked = server.ask(*said, QUESTION, mode=READ, **options)
        assert reply == read(chat.fork(), QUESTION)
        assert asked.revision == 1 and not asked.written


def test_a_request_that_does_not_go_on_leaves_nothing(running):
    server = running()
    server.ask(FACT, memory="anna")
    for _ in range(3):
        _, done = server.ask(QUESTION, memory="anna", mode=READ, goes_on=False)
        assert done.turn == ""
        server.ask(QUESTION, mode=READ, goes_on=False)
        server.ask(QUESTION, mode=OFF, goes_on=False)
    assert server.memories.get("anna").readers.nbytes == 0
    assert not list(server.memories.private())


def test_copies_are_bounded(running, monkeypatch):
    def count(server: Running) -> int:
        return len(server.memories.get("anna").readers._readers)

    server = running()
    server.ask(FACT, memory="anna")
    memory = server.memories.get("anna")
    alone = memory.nbytes
    for index in range(readers._MOST + 3):
        server.ask(f"Number {index}.", memory="anna", mode=READ)
    assert count(server) == readers._MOST
    assert memory.nbytes - alone == memory.readers.nbytes > 0
    one = memory.readers._readers[0].nbytes
    monkeypatch.setattr(readers, "_MOST_BYTES", 2 * one)
    server.ask("The last one.", memory="anna", mode=READ)
    assert count(server) <= 2
    assert memory.readers.nbytes <= 2 * one


def test_what_is_written_meanwhile_is_that_of_a_chat(running):
    server, chat = running(), plain_chat()

    async def all_at_once() -> None:
        await asyncio.gather(
            server.asking(FACT, memory="anna", chat="c", max_tokens=40),
            *(server.asking(f"{index}?", memory="anna", mode=READ) for index in range(5)),
        )

    asyncio.run(all_at_once())
    chat.send(FACT, 40)
    assert same_memory(chat_of(server, "anna"), chat, 1e-4)
