"""The places of the messages of one conversation, among turns of others and remembered texts."""

import pytest

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.messages import parse_messages
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS
from mlx_deltamem.sessions.turns.chat_text import ChatText
from mlx_deltamem.sessions.turns.turn import Turn
from tests.sessions.test_session import loaded

MESSAGES = parse_messages([{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}])
TURNS = [
    Turn(MESSAGES[:1], NO_SEGMENTS, reply="Yes."),
    Turn(MESSAGES, NO_SEGMENTS, conversation="other", reply="No."),
    Turn(MESSAGES, NO_SEGMENTS, remembered=True),
    Turn(MESSAGES, NO_SEGMENTS, reply="Well."),
]


def text_of(system: str | None, conversation: str = "", history: str | int = "full") -> ChatText:
    return ChatText(ChatTemplate(loaded()[1]), system, history, conversation)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_every_message_has_a_place(system):
    text = text_of(system)
    places = [text.place_of(TURNS, index) for index, _ in enumerate(text.messages(TURNS))]
    said = [(0, 0), (0, 1), (3, 0), (3, 1), (3, 2)]
    assert places == (said if system is None else [None, *said])
    assert [text.place_of(TURNS, index - len(places)) for index in range(len(places))] == places
    assert text_of(None, "other").place_of(TURNS, -1) == (1, 2)
    for index in (len(places), -len(places) - 1, True, "0", None):
        with pytest.raises(ValueError, match=f"there is no message {index!r}; the chat has {len(places)}"):
            text.place_of(TURNS, index)


def test_turns_are_counted_up_to_a_reply():
    text = text_of("Be brief.")
    assert [text.turns_up_to(TURNS, index) for index in (2, -1, 5)] == [1, 4, 4]
    for index in (0, 1, 3, -2):
        with pytest.raises(ValueError, match=f"message {index} is not a reply"):
            text.turns_up_to(TURNS, index)
    with pytest.raises(ValueError, match="message 0 is not a reply"):
        text.turns_up_to([], 0)


RULE, QUESTION = parse_messages([{"role": "developer", "content": "NEWRULE"}, {"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("messages", [(RULE, QUESTION), (QUESTION, RULE), (QUESTION, RULE, QUESTION), (RULE,)])
@pytest.mark.parametrize("conversation", ["", "other"])
def test_a_later_system_message_is_read_whatever_the_history(system, messages, conversation):
    whole, part, none = (text_of(system, conversation, history) for history in ("full", 30, "none"))
    opening = whole.opening(TURNS, messages)
    assert "NEWRULE" in loaded()[1].decode(opening.ids)
    assert part.opening(TURNS, messages) == none.opening(TURNS, messages) == opening
    assert none.ending(TURNS, messages, "Yes.") == whole.ending(TURNS, messages, "Yes.")


def test_a_later_system_message_that_the_template_refuses_is_refused_whatever_the_history():
    tokenizer = loaded()[1]
    template = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}"
    template += "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    for history in ("full", "none"):
        text = ChatText(ChatTemplate(tokenizer, chat_template=template), None, history)
        assert text.opening([], (RULE, QUESTION))
        with pytest.raises(ValueError, match="the chat template refuses"):
            text.opening(TURNS, (RULE, QUESTION))
