"""Replies that are generated together, and how each ends."""

import asyncio

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import Mode, Piece, RefusedError, ReplyRequest, Sampling
from mlx_deltamem.sessions.text.messages import parse_messages
from mlx_deltamem.sessions.text.token_ids import token_ids
from tests.serving.conftest import OFF, READ, WRITE, chat_of, plain_chat, wait_until
from tests.sessions.test_session import loaded, same_memory


def test_many_memories_at_once(running):
    server = running()
    texts = [f"My word is {word}." for word in ("jade", "oak", "tin", "rose", "sand", "blue", "moss", "rain")]
    replies = server.run(*(server.asking(text, memory=f"m{index}") for index, text in enumerate(texts)))
    for index, (text, (reply, done)) in enumerate(zip(texts, replies, strict=True)):
        chat = plain_chat()
        assert reply == "".join(response.text for response in chat.stream(text, 8))
        assert done.memory == f"m{index}"
        assert same_memory(chat_of(server, f"m{index}"), chat, 1e-4)


def test_a_text_that_waits_for_a_reply_leaves_the_order_of_others_alone(running):
    """It begins when that reply ends, and lets the others go on between two of its parts."""
    server = running()
    server.ask("Hello.", memory="anna")
    anna = server.memories.get("anna")
    # A reply that somebody watches is generated on its own, before the others of the same step.
    anna.listeners.append(lambda event: None)

    async def remembering() -> None:
        while not anna.is_busy:
            await asyncio.sleep(0.001)
        note = ({"role": "user", "content": "A note of some words. " * 240},)
        await server.service.remember("anna", note, "all", None)

    _, (reply, _), _ = server.run(
        server.asking("My word is jade.", memory="anna", max_tokens=6),
        server.asking("Hello there.", memory="ben", max_tokens=24),
        remembering(),
    )
    assert reply == "".join(response.text for response in plain_chat().stream("Hello there.", 24))
    assert len(chat_of(server, "anna").turns) == 3


def test_a_seed_is_the_requests_own(running):
    server = running()
    sampled = {"sampling": Sampling(temperature=1.5, seed=7), "mode": OFF, "max_tokens": 12}
    alone, _ = server.ask("Hello there.", **sampled)
    others = [server.asking(f"{index}", mode=OFF, sampling=Sampling(1.0, seed=index)) for index in range(3)]
    again, *_ = server.run(server.asking("Hello there.", **sampled), *others)
    assert again[0] == alone
    other, _ = server.ask("Hello there.", **{**sampled, "sampling": Sampling(temperature=1.5, seed=-8)})
    assert other != alone


def test_the_stop_text_that_ended_a_reply_is_told(running):
    server = running()
    whole, done = server.ask("Hello there.", memory="whole", max_tokens=12)
    assert done.stop_text is None
    texts = (whole[8:10], whole[3:5])
    for memory in ("anna", None):
        text, done = server.ask("Hello there.", memory=memory, max_tokens=12, stop=texts)
        assert (text, done.finish_reason, done.stop_text) == (whole[: whole.index(texts[1])], "stop", texts[1])


def test_the_bytes_of_tokens_that_are_a_part_of_a_character(running):
    server = running()
    first, second = (server.service.tokenizer.convert_tokens_to_ids(entry) for entry in ("Ã", "©"))
    request = ReplyRequest(
        parse_messages("Hello."), max_tokens=2, top_logprobs=2, sampling=Sampling(logit_bias={first: 100, second: 50})
    )

    async def pieces() -> list[Piece]:
        return [item async for item in server.service.reply(request) if isinstance(item, Piece)]

    [found] = server.run(pieces())
    assert [piece.logprob.raw for piece in found] == [b"\xc3"] * 2
    assert [[top.raw for top in piece.top] for piece in found] == [[b"\xc3", b"\xa9"]] * 2


@pytest.mark.parametrize("memory", [None, "anna"])
def test_stop_texts_are_looked_for_in_generated_text(running, memory):
    """Not in the beginning that the client gives, nor across its end."""
    server, begun = running(), "```json\n"
    rest, plain = server.ask("Give JSON.", begun, memory="whole", max_tokens=8)
    assert plain.reply_tokens == 8 and plain.stop_text is None
    stops = ("```", "n\n" + rest[:1], begun + rest[:2])
    text, done = server.ask("Give JSON.", begun, memory=memory, max_tokens=8, stop=stops)
    assert (text, done.reply_tokens, done.finish_reason, done.stop_text) == (rest, 8, "length", None)
    # A stop text that is generated ends the reply behind what was given.
    text, done = server.ask("Give JSON.", begun, memory="other", max_tokens=8, stop=("```", rest[2:4]))
    assert (text, done.finish_reason, done.stop_text) == (rest[: rest.index(rest[2:4])], "stop", rest[2:4])
    assert 0 < done.reply_tokens < 8
    assert chat_of(server, "other").turns[-1].reply == begun + text


@pytest.mark.parametrize("begun", [" The answer is", "The answer is", " ", "  x"])
def test_all_generated_characters_are_sent(running, begun):
    server = running()
    text, _done = server.ask("What is it?", begun, memory="anna", max_tokens=8)
    turn = chat_of(server, "anna").turns[-1]
    tokenizer = server.engine.tokenizer
    given = token_ids(tokenizer, begun)
    whole = tokenizer.decode(list(turn.reply_ids))
    assert list(turn.reply_ids)[: len(given)] == given
    assert text and whole.endswith(text)
    assert whole[: len(whole) - len(text)].strip() == begun.strip()


def test_a_client_that_leaves_ends_the_turn_there(running):
    server = running()
    server.run(server.asking("Hello there.", memory="anna", max_tokens=400, leave_after=2, is_streamed=True))
    _reply, done = server.ask("Hello.", memory="anna", chat="new")
    assert done.revision == 2
    assert 2 <= len(chat_of(server, "anna").turns[0].reply_ids) < 100


def test_a_client_that_leaves_before_it_has_got_anything_changes_nothing(running):
    """One that waits for the whole reply asks again when it has lost patience: its message is written once."""
    server = running()
    server.ask("My word is jade.", memory="anna")
    before = chat_of(server, "anna").fork()
    server.run(server.asking("Hello there.", memory="anna", max_tokens=400, leave_after=2))
    _reply, done = server.ask("Hello there.", memory="anna", max_tokens=4)
    assert done.revision == 2
    before.conversation = "again"
    before.send("Hello there.", 4)
    assert same_memory(chat_of(server, "anna"), before, 0)


def test_a_stream_that_is_left_before_anything_was_sent_changes_nothing(running):
    """Tokens that were generated and that nobody got are no reply."""
    server = running()
    server.ask("My word is jade.", memory="anna")
    before = chat_of(server, "anna").fork()

    async def leave() -> None:
        asked = asyncio.ensure_future(server.asking("Hello there.", memory="anna", max_tokens=400, is_streamed=True))
        # The loop of the client does not run while the engine generates, so it gets nothing.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wait_until(lambda: server.engine.active == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    server.run(leave())
    wait_until(lambda: server.engine.is_idle)
    assert [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns] == ["My word is jade."]
    assert same_memory(chat_of(server, "anna"), before, 0)
    assert 'deltamem_requests_total{outcome="left"} 1.0' in server.service.metrics()


def test_a_turn_that_waits_for_a_memory_that_is_deleted_begins_a_new_one(running):
    server = running()
    server.ask("My word is jade.", memory="anna")
    server.run(
        server.asking("Hello there.", memory="anna", max_tokens=40),
        server.service.delete("anna", None),
        server.asking("My word is oak.", memory="anna"),
        server.asking("Hello.", memory="anna"),
    )
    chat = plain_chat()
    chat.send("My word is oak.", 8)
    chat.conversation = "other"
    chat.send("Hello.", 8)
    for found in (chat_of(server, "anna"), ChatSession.load(*loaded(), server.memories.get("anna").path)):
        assert found.messages == chat.messages
        assert same_memory(found, chat, 0)


def test_a_reply_can_expect_the_state_that_the_client_has_seen(running):
    server = running()
    _reply, first = server.ask("My word is jade.", memory="anna")
    _reply, second = server.ask("Hello there.", memory="anna", match=["0", first.tag])
    assert second.tag != first.tag and second.tag == server.run(server.service.memory("anna"))[0].revision
    for mode in (WRITE, READ):
        with pytest.raises(RefusedError, match=f"has revision {second.tag}, not {first.tag}") as caught:
            server.ask("Hello.", memory="anna", mode=mode, match=[first.tag])
        assert caught.value.status == 412
    assert len(chat_of(server, "anna").turns) == 2
    with pytest.raises(RefusedError, match="If-Match expects one"):
        server.ask("Hello.", memory="ghost", match=[first.tag])
    assert [info.name for info in server.run(server.service.memories())[0]] == ["anna"]


def test_a_memory_that_was_only_read_is_not_there(running):
    server = running()
    _reply, done = server.ask("Hello.", memory="ghost", mode=Mode.READ)
    assert done.memory == "ghost"
    assert server.run(server.service.memories()) == [[]]
    with pytest.raises(RefusedError, match="there is no memory ghost"):
        server.run(server.service.memory("ghost"))
    with pytest.raises(RefusedError, match="If-Match expects one") as caught:
        server.run(server.service.remember("ghost", [{"role": "user", "content": "x"}], "all", ["1"]))
    assert caught.value.status == 412
    [info] = server.run(server.service.create("ghost", None, None))
    assert info.turns == 0
