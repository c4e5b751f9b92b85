"""Which memory a request uses, and whether it adds a turn to it."""

from tests.serving.conftest import OFF, READ, chat_of, plain_chat


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


def test_a_private_chat_is_found_again_where_nothing_is_written(running):
    server = running(write="none")
    first, _ = server.ask("My word is jade.")
    _, done = server.ask("My word is jade.", first, "What is it?")
    assert done.revision == 2 and len(list(server.memories.private())) == 1


def test_chats_that_begin_alike_keep_their_turns(running):
    """Each request goes on in the memory that knows most of its messages."""
    server = running()
    first, _ = server.ask("Hi.")
    ours = ["Hi.", first, "My word is jade, and there is more to it."]
    ours.append(server.ask(*ours)[0])
    server.ask("Hi.")
    theirs = ["Hi.", first, "My word is oak."]
    theirs.append(server.ask(*theirs)[0])
    assert len(list(server.memories.private())) == 2
    for said in (ours, theirs, ours):
        reply, done = server.ask(*said, "What is it?")
        chat = plain_chat()
        for text in said[::2]:
            chat.send(text, 8)
        assert reply == "".join(response.text for response in chat.stream("What is it?", 8))
        # Only the new message has run.
        assert (done.revision, done.read_tokens) == (3, len(chat.turns[-1].opening.ids))
    assert len(list(server.memories.private())) == 2


def test_among_memories_that_know_as_much_the_one_that_ends_there_goes_on(running):
    server = running()
    first, _ = server.ask("Hi.")
    server.ask("Hi.")
    # Both chats say the same, one after the other.
    replies = [server.ask("Hi.", first, "My word is jade.")[0] for _ in range(2)]
    assert replies[0] == replies[1]
    private = list(server.memories.private())
    assert [len(memory.chat.turns) for memory in private] == [2, 2]
    # The reply is asked for again where the message comes next, and the other memory was used last.
    server.ask("Hi.", first, "My word is jade.", replies[0], "What is it?")
    server.ask("Hi.", first, "My word is oak.")
    used = next(server.memories.private())
    server.ask("Hi.", first, "My word is jade.", max_tokens=3)
    other = next(server.memories.private())
    assert other is not used
    assert [turn.messages[0]["content"] for turn in used.chat.turns] == ["Hi.", "My word is oak."]


def test_a_reply_that_goes_on_tells_chats_apart(running):
    server = running()
    first, _ = server.ask("Hi.")
    begun, _ = server.ask("Hi.", first, "Hello there.", max_tokens=3)
    [ours] = server.memories.private()
    server.ask("Hi.")
    other, _ = server.ask("Hi.", first, "Hello there.", max_tokens=5)
    [theirs] = [memory for memory in server.memories.private() if memory is not ours]
    assert begun != other
    # The other memory was used last.
    rest, _ = server.ask("Hi.", first, "Hello there.", begun, max_tokens=3)
    assert [memory.chat.turns[1].reply for memory in (ours, theirs)] == [begun + rest, other]
