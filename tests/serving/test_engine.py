"""The engine of the server: memories equal those of `ChatSession` on the same turns."""

import asyncio
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import Done, RefusedError, ReplyRequest, Sampling
from mlx_deltamem.sessions.messages import parse_messages
from tests.serving.conftest import OFF, READ, Running
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import HISTORIES, loaded, new_chat, same_memory

every_history = pytest.mark.parametrize("history", HISTORIES)


def chat_of(running: Running, name: str) -> ChatSession:
    return running.memories.get(name).chat


def plain_chat(history: str | int = "full") -> ChatSession:
    return new_chat(history=history, system=None)


@every_history
def test_a_message_is_written_exactly_once(running, history):
    server, chat = running(history=history), plain_chat(history)
    said: list[str] = []
    for text in ("My word is jade.", "Hello there.", "What is it?"):
        reply, done = server.ask(*said, text, memory="anna")
        assert reply == "".join(response.text for response in chat.stream(text, 8))
        said += [text, reply]
        assert done.written
        assert (done.memory, done.revision) == ("anna", len(chat.turns))
        if history == "full":
            assert done.prompt_tokens == sum(turn.length for turn in chat.turns[:-1]) + len(chat.turns[-1].opening.ids)
            assert done.read_tokens == len(chat.turns[-1].opening.ids)
        assert same_memory(chat_of(server, "anna"), chat, 0)


def test_the_file_is_a_session(running, tmp_path):
    server = running()
    reply, _ = server.ask("My word is jade.", memory="anna")
    chat = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert chat.messages[1]["content"].strip() == reply.strip()
    assert same_memory(chat, chat_of(server, "anna"), 0)
    # The other way round.
    chat.undo()
    chat.send("Mine is oak.", 4)
    chat.save(tmp_path / "memories" / "ben.safetensors")
    server.ask("Hello.", memory="ben")
    chat.conversation = chat_of(server, "ben").conversation
    chat.send("Hello.", 8)
    assert same_memory(chat, chat_of(server, "ben"), TOLERANCE_AGAIN)


@every_history
def test_a_new_chat_begins_from_the_head(running, history):
    server, chat = running(history=history), plain_chat(history)
    server.ask("My word is jade.", memory="anna")
    server.ask("Hello there.", memory="anna")
    chat.send("My word is jade.", 8)
    chat.conversation = "other"
    chat.send("Hello there.", 8)
    assert same_memory(chat_of(server, "anna"), chat, 0)


@every_history
def test_regenerated_and_edited_exactly(running, history):
    server = running(history=history)
    first, _ = server.ask("My word is jade.", memory="anna")
    server.ask("My word is jade.", first, "Hello there.", memory="anna")
    # The same question again takes the first answer back.
    server.ask("My word is jade.", first, "Hello there.", memory="anna")
    edited, _ = server.ask("My word is jade.", first, "Hello you.", memory="anna")
    chat = plain_chat(history)
    chat.send("My word is jade.", 8)
    assert "".join(response.text for response in chat.stream("Hello you.", 8)) == edited
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)
    assert len(chat_of(server, "anna").turns) == 2


def test_the_first_message_is_edited_where_the_chat_has_an_id(running):
    server = running()
    server.ask("My word is jade.", memory="anna", chat="c1")
    server.ask("My word is oak.", memory="anna", chat="c1")
    server.ask("Hello.", memory="anna", chat="c2")
    chat = plain_chat()
    chat.send("My word is oak.", 8)
    chat.conversation = "c2"
    chat.send("Hello.", 8)
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


def test_an_edit_below_another_chat_runs_it_again_up_to_a_limit(running, tmp_path):
    server = running()
    server.ask("My word is jade.", memory="anna", chat="c1")
    server.ask("Hello.", memory="anna", chat="c2")
    server.ask("My word is oak.", memory="anna", chat="c1")
    turns = [turn.messages[0]["content"] for turn in chat_of(server, "anna").turns]
    assert turns == ["Hello.", "My word is oak."]
    strict = running(tmp_path / "other", replay_limit=3)
    strict.ask("My word is jade.", memory="anna", chat="c1")
    strict.ask("Hello.", memory="anna", chat="c2")
    before = chat_of(strict, "anna").memory
    with pytest.raises(RefusedError, match="tokens of later turns would have to run again") as caught:
        strict.ask("My word is oak.", memory="anna", chat="c1")
    assert caught.value.status == 409
    assert all((chat_of(strict, "anna").memory[layer] == state).all() for layer, state in before.items())


def test_unknown_exchanges_are_run_once(running):
    server, chat = running(), plain_chat()
    server.ask("My word is jade.", "Nice.", "Hello.", "Hi.", "What is it?", memory="anna")
    chat.read_exchange("My word is jade.", "Nice.")
    chat.read_exchange("Hello.", "Hi.")
    chat.send("What is it?", 8)
    assert chat.messages == chat_of(server, "anna").messages
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


@every_history
def test_a_first_reply_that_the_client_shows_in_part_is_not_written_twice(running, history):
    """A client that stops a reply may not show the last tokens that were sent."""
    server, chat = running(history=history), plain_chat(history)
    reply, _ = server.ask("My word is jade.", memory="anna")
    part = reply[:2]
    assert part.strip() and part != reply
    server.ask("My word is jade.", part, "What is it?", memory="anna")
    chat.read_exchange("My word is jade.", part)
    chat.send("What is it?", 8)
    assert chat_of(server, "anna").messages == chat.messages
    assert len(chat_of(server, "anna").turns) == 2
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


@pytest.mark.parametrize("memory", ["anna", None])
def test_a_reply_with_a_special_token_is_known_when_it_comes_back(running, memory):
    server = running()
    token = server.engine.tokenizer.encode("<|im_start|>", add_special_tokens=False)
    assert len(token) == 1
    sampling = Sampling(logit_bias={token[0]: 100.0})
    reply, _ = server.ask("My word is jade.", memory=memory, max_tokens=2, sampling=sampling)
    assert reply == "<|im_start|>" * 2
    _, done = server.ask("My word is jade.", reply, "What is it?", memory=memory)
    assert done.revision == 2 and 0 < done.read_tokens < done.prompt_tokens


def test_read_only_and_off_change_nothing(running):
    server = running()
    server.ask("My word is jade.", memory="anna")
    memory, messages = chat_of(server, "anna").memory, chat_of(server, "anna").messages
    chat = plain_chat()
    chat.send("My word is jade.", 8)
    chat.conversation = "x"
    for mode in (READ, OFF):
        reply, done = server.ask("What is it?", memory="anna", mode=mode)
        assert not done.written
        if mode is READ:
            assert reply == "".join(each.text for each in chat.fork().stream("What is it?", 8, read_only=True))
        else:
            assert reply == "".join(each.text for each in plain_chat().stream("What is it?", 8, write="none"))
    text, done = server.ask(memory="anna", text="Once upon a time", mode=READ)
    assert text
    assert not done.written
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())
    assert chat_of(server, "anna").messages == messages


def test_a_private_memory_follows_its_chat(running):
    server, chat = running(), plain_chat()
    first, done = server.ask("My word is jade.")
    assert done.memory is None
    second, done = server.ask("My word is jade.", first, "What is it?")
    chat.send("My word is jade.", 8)
    assert second == "".join(response.text for response in chat.stream("What is it?", 8))
    assert done.revision == 2
    assert not server.memories.names()
    third, _ = server.ask("And now?", continues=done.turn)
    assert third == "".join(response.text for response in chat.stream("And now?", 8))


def test_many_memories_at_once(running):
    server = running()
    texts = [f"My word is {word}." for word in ("jade", "oak", "tin", "rose", "sand", "blue", "moss", "rain")]
    replies = server.run(*(server.asking(text, memory=f"m{index}") for index, text in enumerate(texts)))
    for index, (text, (reply, done)) in enumerate(zip(texts, replies, strict=True)):
        chat = plain_chat()
        assert reply == "".join(response.text for response in chat.stream(text, 8))
        assert done.memory == f"m{index}"
        assert same_memory(chat_of(server, f"m{index}"), chat, 1e-4)


def test_requests_for_one_memory_wait_for_each_other(running):
    server = running()
    server.run(*(server.asking(f"Number {index}.", memory="anna") for index in range(5)))
    assert len(chat_of(server, "anna").turns) == 5
    assert server.engine.waiting == server.engine.active == 0


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


def test_a_client_that_leaves_ends_the_turn_there(running):
    server = running()
    server.run(server.asking("Hello there.", memory="anna", max_tokens=400, leave_after=2))
    _reply, done = server.ask("Hello.", memory="anna", chat="new")
    assert done.revision == 2
    assert 2 <= len(chat_of(server, "anna").turns[0].reply_ids) < 100


def test_errors_change_nothing(running):
    server = running()
    server.ask("Hello.", memory="anna")
    memory = chat_of(server, "anna").memory
    cases = {
        (): ({"text": ""}, 400),
        ("a", "b"): ({}, 400),
        ("word " * 20_000,): ({}, 400),
    }
    for said, (options, status) in cases.items():
        with pytest.raises(RefusedError) as caught:
            server.ask(*said, memory="anna", **options)
        assert caught.value.status == status
    with pytest.raises(RefusedError, match="brings a chat template"):
        server.ask("Hello.", memory="anna", template_options={"chat_template": "{{ 1 }}"})
    with pytest.raises(RefusedError, match="no turn"):
        server.ask("Hello.", memory="anna", continues="nothing")
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())
    _, done = server.ask("Hello again.", memory="anna", chat="new")
    assert done.revision == 2


def test_a_file_that_another_program_saved_is_a_conflict(running, tmp_path):
    server = running()
    server.ask("Hello.", memory="anna")
    path = tmp_path / "memories" / "anna.safetensors"
    other = ChatSession.load(*loaded(), path)
    other.send("Mine.", 4)
    other.save(path)
    with pytest.raises(RefusedError, match="saved by someone else") as caught:
        server.ask("Hello again.", memory="anna")
    assert caught.value.status == 409
    assert len(chat_of(server, "anna").turns) == 1
    _, done = server.ask("Hello.", memory="ben")
    assert done.written


def test_a_damaged_file_is_refused_and_the_others_go_on(running, tmp_path):
    server = running()
    (tmp_path / "memories" / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(RefusedError, match=r"the memory cannot be used: bad\.safetensors") as caught:
        server.ask("Hello.", memory="bad")
    assert caught.value.status == 422
    assert [info.name for info in server.run(server.service.memories())[0]] == []
    server.ask("Hello.", memory="good")
    assert [info.name for info in server.run(server.service.memories())[0]] == ["good"]


def test_a_damaged_memory_can_be_replaced_and_deleted(running, tmp_path, monkeypatch):
    server, folder = running(), tmp_path / "memories"
    run, service = server.run, server.service
    server.ask("My word is jade.", memory="anna")
    [content] = run(service.exported("anna"))
    for name in ("bad", "worse"):
        (folder / f"{name}.safetensors").write_bytes(b"nothing")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mlx_deltamem.sessions.session.write_chat", full)
        with pytest.raises(RefusedError, match="No space left"):
            run(service.imported("bad", content))
    assert (folder / "bad.safetensors").read_bytes() == b"nothing"
    [info] = run(service.imported("bad", content))
    assert info.turns == 1
    assert same_memory(chat_of(server, "bad"), chat_of(server, "anna"), 0)
    with pytest.raises(RefusedError, match="cannot be used"):
        run(service.delete("worse", "a revision"))
    run(service.delete("worse", None))
    assert {path.name for path in folder.iterdir()} == {".lock", "anna.safetensors", "bad.safetensors"}


def test_an_import_that_cannot_be_saved_changes_nothing(running, monkeypatch):
    server = running()
    run, service = server.run, server.service
    server.ask("My word is jade.", memory="anna")
    server.ask("Hello there.", memory="ben")
    [content], memory = run(service.exported("ben")), chat_of(server, "anna").memory

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_deltamem.sessions.session.write_chat", full)
    with pytest.raises(RefusedError, match="No space left"):
        run(service.imported("anna", content))
    assert chat_of(server, "anna").turns[0].messages[0]["content"] == "My word is jade."
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())


def test_a_disk_that_is_full(running, monkeypatch):
    server = running()
    server.ask("Hello.", memory="anna")

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("mlx_deltamem.sessions.session.write_chat", full)
    with pytest.raises(RefusedError, match="No space left") as caught:
        server.ask("Hello again.", memory="anna")
    assert caught.value.status == 507
    assert str(server.memories.folder) not in str(caught.value)
    assert len(chat_of(server, "anna").turns) == 1
    monkeypatch.undo()
    _, done = server.ask("Hello again.", memory="anna")
    assert done.revision == 2


def test_operations_on_memories(running):
    server = running()
    run, service = server.run, server.service
    [info] = run(service.create("anna", "none", "after"))
    assert (info.history, info.write, info.turns) == ("none", "after", 0)
    with pytest.raises(RefusedError, match="there is a memory anna already"):
        run(service.create("anna", None, None))
    server.ask("My word is jade.", memory="anna")
    [info] = run(service.memory("anna"))
    [turns] = run(service.turns("anna"))
    assert next(message["content"] for message in turns[0].messages) == "My word is jade."
    run(service.fork("anna", "ben"))
    with pytest.raises(RefusedError, match="revision") as caught:
        run(service.undo("ben", "other"))
    assert caught.value.status == 412
    run(service.undo("ben", None))
    with pytest.raises(RefusedError, match="no turn to take back"):
        run(service.undo("ben", None))
    run(service.remember("ben", ({"role": "user", "content": "A note."},), "all", None))
    [content] = run(service.exported("ben"))
    [copied] = run(service.imported("carl", content))
    assert copied.turns == 1
    assert same_memory(chat_of(server, "carl"), chat_of(server, "ben"), 0)
    [replaced] = run(service.imported("anna", content))
    assert replaced.turns == 1
    with pytest.raises(RefusedError, match="not a session"):
        run(service.imported("anna", b"rubbish"))
    run(service.reset("carl", None))
    assert not chat_of(server, "carl").turns
    [changed] = run(service.change("carl", 20, None, None))
    assert changed.history == 20
    [names] = run(service.memories())
    assert [info.name for info in names] == ["anna", "ben", "carl"]
    run(service.delete("carl", None))
    with pytest.raises(RefusedError, match="there is no memory carl"):
        run(service.memory("carl"))
    [heat], [drift] = run(service.heatmap("ben")), run(service.drift("ben"))
    assert len(heat["layers"]) == len(chat_of(server, "ben").memory)
    assert len(drift["turns"]) == 1
    assert "deltamem_reply_tokens_total" in service.metrics()


def test_memories_leave_ram_and_come_back(running):
    server = running(most_bytes=1)
    for name in ("anna", "ben", "carl", "anna", "ben"):
        server.ask(f"Hello {name}.", memory=name, chat=name)
    assert len(server.memories.loaded()) <= 2
    # The second question of a chat of the same id takes the first one's place.
    assert [len(chat_of(server, name).turns) for name in ("anna", "ben", "carl")] == [1, 1, 1]


def test_the_texts_of_all_chats_of_a_memory_are_counted(running):
    server = running()
    server.ask("Hello there.", memory="anna", chat="a")
    memory = server.memories.get("anna")
    text, one = memory.chat.state.kept_bytes, memory.counted
    assert one == memory.nbytes > text > 0
    server.ask("Hello again.", memory="anna", chat="b")
    new = sum(entry.nbytes for entry in memory.chat.state.filled_cache)
    assert memory.chat.state.kept_bytes == text + new
    assert memory.counted == memory.nbytes >= one + new


def test_the_end_saves_what_was_said(running, tmp_path):
    server = running()

    async def leave() -> list:
        asking = asyncio.create_task(server.asking("Hello there.", memory="anna", max_tokens=100_000))
        while not server.engine.active:
            await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(None, server.engine.stop, 0)
        return [await asking]

    [(_text, done)] = asyncio.run(leave())
    assert isinstance(done, Done)
    again = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert again.turns[0].reply_ids
    with pytest.raises(RefusedError, match="the server is ending"):
        server.ask("Hello.")


def test_one_server_for_a_folder(running, tmp_path):
    running()
    with pytest.raises(ValueError, match="another server uses"):
        running()


def test_a_memory_is_watched_token_by_token(running):
    server = running()
    server.ask("Hello.", memory="anna", chat="c")

    async def watch() -> list:
        events, found = server.service.events("anna"), []
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        text, _ = await server.asking("My word is jade.", memory="anna", chat="d", max_tokens=5)
        found.append(await first)
        while found[-1]["event"] != "turn":
            found.append(await anext(events))
        await events.aclose()
        return [text, found]

    text, found = asyncio.run(watch())
    tokens = [event for event in found if event["event"] == "token"]
    assert "".join(event["text"] for event in tokens) == text[: sum(len(event["text"]) for event in tokens)]
    assert len(tokens) >= 4
    layers = {str(layer) for layer in chat_of(server, "anna").memory}
    for event in tokens:
        assert event["norms"].keys() == layers
        assert all(0 <= value <= 1 for value in event["beta"].values())
    # mlx-lm runs one token ahead, so the first one has no gates.
    assert any(event["beta"].keys() == layers for event in tokens)
    assert tokens[0]["heat"] != tokens[-1]["heat"]
    assert not server.memories.get("anna").listeners
    chat = plain_chat()
    chat.send("Hello.", 8)
    chat.conversation = "d"
    chat.send("My word is jade.", 5)
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


@pytest.mark.parametrize("memory", [None, "anna"])
def test_messages_that_end_with_a_reply_are_refused(running, memory):
    with pytest.raises(RefusedError, match="end with a reply of the assistant") as caught:
        running().ask("Hello.", "Hi.", memory=memory)
    assert caught.value.status == 400


def test_a_chat_that_is_longer_than_the_window_sees_its_last_tokens_and_a_note_says_so(running, monkeypatch):
    server = running()
    reply, done = server.ask("My word is jade.", memory="anna")
    assert done.note is None
    model = loaded()[0]
    longest = chat_of(server, "anna").turns[0].length + 20
    monkeypatch.setattr(model.args, "max_position_embeddings", longest)

    async def notes() -> list[str | None]:
        said = ("My word is jade.", reply, "And what is it?")
        messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
        request = ReplyRequest(parse_messages(messages), memory="anna", max_tokens=4)
        return [step.note async for step in server.service.reply(request)]

    [told] = server.run(notes())
    note = f"the chat is longer than the model's window; the last {longest // 2} tokens are seen"
    # The first step has it for the head of a stream.
    assert told == [note, *[None] * (len(told) - 2), note]
    # The next reply may see all of its text again.
    assert chat_of(server, "anna").history == "full"
    monkeypatch.undo()
    chat = plain_chat()
    chat.send("My word is jade.", 8)
    chat.history = longest // 2
    chat.send("And what is it?", 4)
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


@pytest.mark.parametrize(
    "asked", [{"said": ("word " * 30_000,)}, {"said": ("Hi.", "word " * 30_000, "Hi.")}, {"text": "word " * 30_000}]
)
def test_a_text_far_longer_than_the_window_is_refused_before_its_tokens_are_counted(running, monkeypatch, asked):
    server = running()
    server.ask("Hello.", memory="anna")
    before = [turn.messages for turn in chat_of(server, "anna").turns]
    lengths: list[int] = []
    tokenizer = server.engine.tokenizer._tokenizer
    encode = tokenizer.encode

    def counted(text: str, **options: object) -> list[int]:
        lengths.append(len(text))
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "encode", counted)
    with pytest.raises(RefusedError, match=r"150,0\d\d characters, and the model's window is 4,096") as caught:
        server.ask(*asked.pop("said", ()), memory="anna", **asked)
    assert (caught.value.status, caught.value.code) == (400, "prompt_too_long")
    assert max(lengths, default=0) < 10_000
    assert [turn.messages for turn in chat_of(server, "anna").turns] == before
    server.ask("Hello again.", memory="anna")


LONG = ({"role": "user", "content": "A note of some words. " * 120},)


@pytest.mark.slow
def test_other_requests_begin_and_end_while_a_long_text_is_remembered(running, monkeypatch):
    server = running()
    ended: list[str] = []

    def remember(chat: ChatSession, *arguments: object, **options: object) -> None:
        remember_before(chat, *arguments, **options)
        ended.append("remembered")

    remember_before = ChatSession.remember
    monkeypatch.setattr(ChatSession, "remember", remember)

    async def asking(*said: str, **options: object) -> None:
        while not server.memories.get("anna", make=True).is_busy:
            await asyncio.sleep(0.001)
        _, done = await server.asking(*said, **options)
        ended.append(options["memory"])
        assert (done.revision == 0) == (options.get("mode") is READ)

    before, _ = plain_chat(), server.ask("My word is jade.", memory="anna")
    [info, *_] = server.run(
        server.service.remember("anna", LONG, "all", None),
        asking("Hello.", memory="ben", max_tokens=2),
        # It reads the memory from before the text.
        server.asking("What is it?", memory="anna", mode=READ, max_tokens=2),
        server.asking("What is it?", memory="anna", max_tokens=2),
    )
    assert ended == ["ben", "remembered"]
    assert info.turns == 2
    assert [turn.remembered for turn in chat_of(server, "anna").turns] == [False, True, False]
    before.send("My word is jade.", 8)
    before.remember(list(LONG))
    before.conversation = "other"
    before.send("What is it?", 2)
    assert same_memory(chat_of(server, "anna"), before, TOLERANCE_AGAIN)


def test_a_server_that_ends_does_not_finish_a_long_text(running):
    server = running()
    server.ask("My word is jade.", memory="anna")
    memory = chat_of(server, "anna").memory

    async def end() -> None:
        while not server.memories.get("anna").is_busy:
            await asyncio.sleep(0.001)
        server.engine.cut()

    async def remembering() -> None:
        with pytest.raises(RefusedError, match="the server is ending"):
            await server.service.remember("anna", LONG, "all", None)

    server.run(remembering(), end())
    assert len(chat_of(server, "anna").turns) == 1
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())
