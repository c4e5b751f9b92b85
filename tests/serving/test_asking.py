"""The place in a chat that a request goes on from: memories equal those of `ChatSession` on the same turns."""

import pytest

from mlx_deltamem.serving.asking import prepare
from mlx_deltamem.serving.exchange import RefusedError, ReplyRequest
from mlx_deltamem.sessions.replies.beginning import Beginning
from mlx_deltamem.sessions.text.messages import parse_messages
from tests.serving.conftest import chat_of, every_history, plain_chat
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import loaded, same_memory


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


def test_the_copy_of_a_chat_takes_nothing_of_the_chat_back(running):
    """With ids that tell them apart, two chats may begin with the same words."""
    server = running()
    first, _ = server.ask("My word is jade.", memory="anna", chat="c1")
    server.ask("My word is jade.", first, "My sister is Ida.", memory="anna", chat="c1")
    copy, _ = server.ask("My word is jade.", first, "My dog is Rex.", memory="anna", chat="c2")
    server.ask("My word is jade.", first, "My dog is Rex.", copy, "Hello.", memory="anna", chat="c2")
    turns = [(turn.conversation, turn.messages[-1]["content"]) for turn in chat_of(server, "anna").turns]
    ours = [("c1", "My word is jade."), ("c1", "My sister is Ida.")]
    assert turns == [*ours, ("c2", "My word is jade."), ("c2", "My dog is Rex."), ("c2", "Hello.")]


def test_a_chat_that_gets_an_id_goes_on_under_it(running):
    server = running()
    first, _ = server.ask("My word is jade.", memory="anna")
    server.ask("My word is jade.", first, "My sister is Ida.", memory="anna", chat="c1")
    assert [turn.conversation for turn in chat_of(server, "anna").turns] == ["c1", "c1"]


@every_history
def test_a_message_that_was_sent_with_sources_is_known_without_them(running, history):
    """As Open WebUI sends it."""
    server = running(history=history)
    sources = "### Task:\nRespond to the user query using the provided context.\n<context>\nA note.\n</context>\n\n"
    first, _ = server.ask(f"{sources}My word is jade.", memory="anna", chat="c1")
    server.ask("My word is jade.", first, "What is it?", memory="anna", chat="c1")
    said = [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns]
    assert said == [f"{sources}My word is jade.", "What is it?"]


def test_between_unknown_exchanges_others_can_go_on():
    chat, seen = plain_chat(), []
    said = ["Hi.", "Hello.", "My word is jade.", "Well.", "What is it?"]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]

    def progress(done: int, total: int) -> None:
        seen.append((done, total, len(chat.turns)))

    prepare(chat, ReplyRequest(messages=parse_messages(messages)), 100, progress)
    assert seen == [(0, 2, 0), (1, 2, 1)]


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


def test_a_later_reply_that_was_stopped_stays_if_too_much_would_run_again(running):
    server = running(replay_limit=3)
    first, _ = server.ask("My word is jade.", memory="anna")
    second, _ = server.ask("My word is jade.", first, "Hello.", memory="anna")
    server.ask("Something else.", memory="anna")
    part = second[:2]
    assert part.strip() and part != second
    server.ask("My word is jade.", first, "Hello.", part, "What is it?", memory="anna")
    said = [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns]
    assert said == ["My word is jade.", "Hello.", "Something else.", "What is it?"]
    with pytest.raises(RefusedError, match="tokens of later turns would have to run again"):
        server.ask("My word is jade.", first, "Hello.", "Edited.", "What is it?", memory="anna")


@pytest.mark.parametrize("chat", [None, "c1"])
@pytest.mark.parametrize("kept", [2, 3])
def test_a_client_that_leaves_out_old_messages_goes_on(running, chat, kept):
    """Each message is written once, also if the first one that is shown is a reply."""
    server, said = running(), []
    for number in range(4):
        said.append(f"Fact {number}.")
        shown = said[-kept - 1 :]
        first = [{"role": "assistant", "content": shown.pop(0)}] if len(shown) % 2 == 0 else []
        reply, _ = server.run(_asking(server, first, shown, chat))[0]
        said.append(reply)
    turns = chat_of(server, "anna").turns
    assert [turn.messages[-1]["content"] for turn in turns] == said[::2]
    assert len({turn.conversation for turn in turns}) == 1
    # The last question again takes its reply back.
    again = said[-2 - kept : -1]
    first = [{"role": "assistant", "content": again.pop(0)}] if len(again) % 2 == 0 else []
    server.run(_asking(server, first, again, chat))
    assert [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns] == said[::2]


def _asking(server, first, texts, chat):
    roles = ("user", "assistant")
    rest = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return server.asking(*first, *rest, memory="anna", chat=chat)


def test_a_chat_that_shows_a_summary_of_itself_keeps_its_turns(running):
    server = running()
    first, _ = server.ask("My word is jade.", memory="anna", chat="c1")
    server.ask("My word is jade.", first, "My sister is Ida.", memory="anna", chat="c1")
    server.ask("In short: a word, a sister.", "Understood.", "Go on.", memory="anna", chat="c1")
    said = [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns]
    assert said == ["My word is jade.", "My sister is Ida.", "In short: a word, a sister.", "Go on."]
    # The id stands for what the client shows now.
    last = chat_of(server, "anna").turns[-1].reply
    server.ask("In short: a word, a sister.", "Understood.", "Go on.", last, "And?", memory="anna", chat="c1")
    assert [turn.conversation for turn in chat_of(server, "anna").turns][2:] == ["c1"] * 3


def test_chats_that_begin_alike_do_not_take_each_others_turns(running):
    server = running()
    reply, _ = server.ask("Hi.", memory="anna")
    other, _ = server.ask("Hi.", memory="anna")
    server.ask("Hi.", reply, "My word is jade.", memory="anna")
    server.ask("Hi.", other, "My word is oak.", memory="anna")
    said = [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns]
    assert said == ["Hi.", "Hi.", "My word is jade.", "My word is oak."]
    # The same question again takes its own reply back.
    for text in ("My word is jade.", "My word is oak."):
        server.ask("Hi.", reply, text, memory="anna")
    assert sorted(turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns) == sorted(said)


def test_a_chat_that_says_what_another_has_said_takes_nothing_back(running):
    """Two chats without ids begin alike. One has gone on, and the other now says its next message too."""
    server = running()
    reply, _ = server.ask("Hi.", memory="anna")
    second, _ = server.ask("Hi.", reply, "My word is jade.", memory="anna")
    server.ask("Hi.", reply, "My word is jade.", second, "A bird.", memory="anna")
    assert server.ask("Hi.", memory="anna")[0] == reply
    server.ask("Hi.", reply, "My word is jade.", memory="anna")
    said = [turn.messages[-1]["content"] for turn in chat_of(server, "anna").turns]
    assert said == ["Hi.", "My word is jade.", "A bird.", "Hi.", "My word is jade."]


def test_exchanges_after_a_turn_that_is_named_are_read(running):
    server = running()
    _reply, done = server.ask("First.", memory="anna")
    server.ask("Second.", "Well.", "Third.", memory="anna", continues=done.turn)
    turns = chat_of(server, "anna").turns
    assert [turn.messages[-1]["content"] for turn in turns] == ["First.", "Second.", "Third."]
    assert turns[1].reply == "Well." and len({turn.conversation for turn in turns}) == 1
    with pytest.raises(RefusedError, match="begins with another one") as caught:
        own, more = {"role": "assistant", "content": "Or so."}, {"role": "user", "content": "Fourth."}
        server.ask(own, more, memory="anna", continues=done.turn)
    assert caught.value.status == 400
    assert len(chat_of(server, "anna").turns) == 3


def test_the_system_prompt_of_another_chat_is_not_seen_where_a_turn_is_continued(running, tmp_path):
    replies = []
    for number, others in enumerate(([], ["Speak in riddles, always."])):
        server = running(tmp_path / str(number), write="none")
        _reply, done = server.ask("Hello.", memory="anna")
        for system in others:
            server.ask("Good day.", memory="anna", system=system)
        replies.append(server.ask("What is it?", memory="anna", continues=done.turn, max_tokens=20)[0])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("memory", [None, "anna"])
def test_a_reply_at_the_end_of_the_messages_goes_on(running, memory):
    """The client gets the rest, and the turn has the whole reply."""
    server, chat = running(), plain_chat()
    rest, done = server.ask("Hello.", "Hi, I am", memory=memory, max_tokens=6)
    ids = chat.tokenizer.encode("Hi, I am", add_special_tokens=False)
    options = {"logits_processors": [Beginning(ids)]}
    whole = "".join(response.text for response in chat.stream("Hello.", len(ids) + 6, **options))
    assert whole == "Hi, I am" + rest and done.reply_tokens == 6
    if memory is not None:
        assert chat_of(server, "anna").messages == chat.messages
        assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


@pytest.mark.parametrize("chat", [None, "c1"])
def test_a_reply_that_was_cut_off_goes_on_in_the_same_turn(running, chat):
    server = running()
    first, _ = server.ask("My word is jade.", memory="anna", chat=chat)
    second, _ = server.ask("My word is jade.", first, "Hello.", memory="anna", chat=chat, max_tokens=3)
    rest, _ = server.ask("My word is jade.", first, "Hello.", second, memory="anna", chat=chat, max_tokens=3)
    turns = chat_of(server, "anna").turns
    assert [turn.messages[-1]["content"] for turn in turns] == ["My word is jade.", "Hello."]
    assert turns[-1].reply == second + rest
    # The first turn too, which no exchange comes before.
    begun, _ = server.ask("My word is oak.", memory="ben", chat=chat, max_tokens=3)
    rest, _ = server.ask("My word is oak.", begun, memory="ben", chat=chat, max_tokens=3)
    assert [turn.reply for turn in chat_of(server, "ben").turns] == [begun + rest]


def test_calls_at_the_end_of_the_messages_are_refused(running):
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    with pytest.raises(RefusedError, match="expected their results") as caught:
        running().ask("Hello.", {"role": "assistant", "content": "", "tool_calls": [call]}, memory="anna")
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


LONG = "Noted. " * 20


def test_earlier_exchanges_that_are_longer_than_the_window_are_read_with_the_last_tokens_in_view(running, monkeypatch):
    server = running()
    chat = plain_chat()
    chat.read_exchange("My word is jade.", LONG)
    chat.read_exchange("Is it?", "It is.")
    # The second message fits into the window, and its reply does not.
    longest = sum(turn.length for turn in chat.turns) - 5
    monkeypatch.setattr(loaded()[0].args, "max_position_embeddings", longest)
    said = ("My word is jade.", LONG, "Is it?", "It is.", "And what is it?")
    _, done = server.ask(*said, memory="anna")
    assert done.note == f"the chat is longer than the model's window; the last {longest // 2} tokens are seen"
    kept = chat_of(server, "anna")
    assert (len(kept.turns), kept.history) == (3, "full")
    monkeypatch.undo()
    chat = plain_chat()
    chat.read_exchange("My word is jade.", LONG)
    chat.history = longest // 2
    chat.read_exchange("Is it?", "It is.")
    chat.read_exchange("And what is it?", kept.turns[-1].reply)
    assert same_memory(kept, chat, TOLERANCE_AGAIN)


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
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert max(lengths, default=0) < 10_000
    assert [turn.messages for turn in chat_of(server, "anna").turns] == before
    server.ask("Hello again.", memory="anna")
