"""The place in a chat from which a list of messages goes on."""

import pytest

from mlx_deltamem.sessions.text.messages import parse_messages
from mlx_deltamem.sessions.turns.place import Place, asked, find_other_reply, find_place, turn_ids
from tests.sessions.test_session import new_chat


def messages(*texts: str, system: str | None = None) -> tuple:
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return parse_messages([*([] if system is None else [{"role": "system", "content": system}]), *said])


def test_messages_in_parts():
    parts = asked(messages("One.", "Two.", "Three.", system="Be brief."))
    assert parts.system == "Be brief."
    assert [exchange.reply["content"] for exchange in parts.earlier] == ["Two."]
    assert [message["content"] for message in parts.new] == ["Three."]


def test_a_reply_at_the_end_is_the_beginning_of_the_next_one():
    parts = asked(messages("One.", "Two.", "Three.", "Four"))
    assert [message["content"] for message in parts.new] == ["Three."] and parts.begun == "Four"
    assert [exchange.reply["content"] for exchange in parts.earlier] == ["Two."]


def test_messages_that_nothing_can_be_replied_to():
    cases = {
        "are a system prompt only": [{"role": "system", "content": "Be brief."}],
        "have a reply only": [{"role": "assistant", "content": "Hi."}],
    }
    for words, given in cases.items():
        with pytest.raises(ValueError, match=f"{words}; expected a message to reply to"):
            asked(parse_messages(given))


def test_a_greeting_and_a_reply_in_two_parts():
    greeted = parse_messages([{"role": "assistant", "content": "Hi!"}, *messages("One.")])
    found = asked(greeted)
    assert "Hi!" in found.start
    assert found.system is None and not found.earlier
    split = parse_messages([*messages("One.", "Two."), {"role": "assistant", "content": "And."}, *messages("Three.")])
    [exchange] = asked(split).earlier
    assert exchange.reply["content"] == "Two.\nAnd."


def test_the_longest_known_part():
    chat = new_chat()
    chat.conversation = "a"
    replies = [chat.send(text, 4) for text in ("One.", "Two.")]
    chat.conversation = "b"
    other = chat.send("One.", 4)
    both = asked(messages("One.", replies[0], "Two.", replies[1], "New.")).earlier
    assert find_place(chat.turns, both) == Place("a", 2)
    assert find_place(chat.turns, both[:1], conversation="a") == Place("a", 1)
    # White space that a client drops does not matter; another text does.
    padded = asked(messages(" One. ", f" {replies[0]}\n", "New.")).earlier
    assert find_place(chat.turns, padded, conversation="a") == Place("a", 1)
    changed = asked(messages("One.", replies[0], "Too.", replies[1], "New.")).earlier
    assert find_place(chat.turns, changed, conversation="a") == Place("a", 1)
    assert find_place(chat.turns, asked(messages("Zero.", other, "New.")).earlier) is None
    assert find_place(chat.turns, ()) is None


def test_a_first_reply_that_the_client_shows_in_another_way():
    chat = new_chat()

    def found(*texts: str) -> Place | None:
        return find_other_reply(chat.turns, asked(messages(*texts, "New.")).earlier, "</think>")

    chat.conversation = "a"
    chat.read_exchange("One.", "<think>Hm.</think> Yes, of course.")
    # It is the last turn: the client has edited the reply.
    assert found("One.", "No.") == Place("a", 0)
    assert found("Zero.", "Yes, of course.") is None
    assert found() is None
    chat.conversation = "b"
    chat.read_exchange("Two.", "Well.")
    assert found("One.", "Yes, of") == found("One.", "") == found("One.", "Yes, of course. And") == Place("a", 0)
    assert found("One.", "No.") is None
    # Of two chats with the same words, it is the newer one.
    chat.conversation = "c"
    chat.read_exchange("One.", "Yes.")
    chat.conversation = "d"
    chat.read_exchange("Two.", "Well.")
    assert found("One.", "Yes, of") == Place("a", 0)
    assert found("One.", "Ye") == Place("c", 0)
    # A chat that has gone on stays as it is.
    for name in ("c", "a"):
        chat.conversation = name
        chat.read_exchange("More.", "Yes.")
    assert found("One.", "Ye") is None


def test_ids_depend_on_all_before():
    one, two = new_chat(), new_chat()
    for chat, first in ((one, "One."), (two, "Two.")):
        chat.read_exchange(first, "Yes.")
        chat.read_exchange("Same.", "Yes.")
    assert turn_ids(one.turns)[1] != turn_ids(two.turns)[1]
    two.undo()
    two.undo()
    two.read_exchange("One.", "<think>Hm.</think> Yes.")
    assert turn_ids(two.turns, "</think>") == turn_ids(one.turns)[:1]
    one.remember("A note.")
    assert len(set(turn_ids(one.turns))) == 3
