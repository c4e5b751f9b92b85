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
