"""Episodes of chats, with the tokenizer of the golden models."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS
from mlx_deltamem.training.counts import Counts
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import Record, RecordError
from mlx_deltamem.training.rules import EpisodeRules
from tests.conftest import backbone
from tests.sessions.template.test_chat_template import chat, golden_tokenizer, written
from tests.training.cases import as_read

TALK = chat("I am Ann.", "Hello.", "I keep bees.", "Fine.", "Who am I?", "You are Ann.", system="Be brief.")


def record(messages: list[Message], value: str = "", where: str = "here") -> Record:
    return Record(where, tuple(messages), value)


def make(*records: Record | RecordError, context: bool = False, **rules: object) -> tuple[list[Episode], Counts]:
    maker = EpisodeMaker(golden_tokenizer(), EpisodeRules(**rules), context)
    return maker.episodes(records), maker.counts


def text(ids: list[int]) -> str:
    return golden_tokenizer().decode(ids)


def rendered(messages: list[Message], generation_prompt: bool = False) -> str:
    return golden_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)


def with_template(source: str) -> TokenizerWrapper:
    tokenizer = load_tokenizer(Path(backbone()))
    tokenizer.chat_template = written(source)
    return tokenizer


# The written and the read part


@pytest.mark.parametrize("recent", [1, 2, 3, 4])
@pytest.mark.parametrize("system", ["Be brief.", None])
def test_the_last_messages_are_read_and_the_earlier_ones_written(recent, system):
    messages = TALK if system else TALK[1:]
    leading, turns = messages[: len(messages) - 6], messages[len(messages) - 6 :]
    [episode], counts = make(record(messages), recent_messages=recent)
    assert episode.history == ChatTemplate(golden_tokenizer()).whole([*leading, *turns[: 5 - recent]])
    assert text(episode.history.ids) == rendered([*leading, *turns[: 5 - recent]])
    [question] = episode.questions
    assert text(question.ids[: question.answer]) == rendered([*leading, *turns[5 - recent : 5]], generation_prompt=True)
    assert text(question.ids[question.answer :]) == written("You are Ann.<E>\n")
    assert question.value[0] == question.value[1]
    assert episode.context == ()
    assert counts.rows() == [("episodes", 1), ("questions", 1)]


def test_a_short_chat_has_no_history():
    for recent in (5, 9):
        [episode], counts = make(record(TALK), recent_messages=recent)
        assert episode.history == NO_SEGMENTS
        assert text(episode.questions[0].ids) == rendered(TALK)
        assert counts.rows() == [("episodes", 1), ("questions", 1), ("without a history", 1)]


def test_recent_messages_of_a_record():
    own = replace(record(TALK), recent=3)
    assert make(own, recent_messages=1)[0] == make(record(TALK), recent_messages=3)[0]


def test_write_of_a_record():
    told = chat("I am Ann.", "Hello.")
    asked = [record([*told, *chat(question, "You are Ann.")]) for question in ("Who am I?", "My name?")]
    written = [replace(each, write="all") for each in asked]
    episodes, counts = make(*asked, *written)
    assert [len(episode.questions) for episode in episodes] == [2, 2]
    assert episodes[1] == as_read(episodes[0]) != episodes[0]
    assert counts.rows() == [("episodes", 2), ("questions", 4)]
    assert make(*asked, *(replace(each, write="after") for each in asked), write="all")[0] == episodes[::-1]


@pytest.mark.parametrize(
    ("write", "history", "read"),
    [
        ("user", "user\nI am Ann.<E>\n<S>user\nI keep bees.<E>\n<S>", "user\nWho am I?<E>\n<S>"),
        ("assistant", "assistant\nHello.<E>\n<S>assistant\nFine.<E>\n<S>", "assistant\nYou are Ann.<E>\n<S>"),
    ],
)
def test_with_a_role_only_its_messages_are_written(write, history, read):
    [episode], _ = make(record(TALK), write=write)
    parts = (episode.history.ids, episode.written), (episode.questions[0].ids, episode.questions[0].written)
    found = [text([token for token, flag in zip(*part, strict=True) if flag]) for part in parts]
    assert found == [written(f"<S>{wanted}".removesuffix("<S>")) for wanted in (history, read)]
    cut = make(record(TALK), write=write, max_write_length=20, max_seq_length=30)[0][0]
    assert cut.written == episode.written[-20:] and cut.questions[0].written == episode.questions[0].written[-30:]


def test_write_after_and_write_all():
    for write, history, read in (("all", True, True), ("after", True, False)):
        [episode], _ = make(record(TALK), write=write)
        assert (episode.written, episode.questions[0].written) == (history, read)
    assert make(record(TALK))[0] == make(record(TALK), write="after")[0]


def test_without_writing_there_is_no_history():
    [episode], counts = make(record(TALK), write="none", context=True)
    assert episode.history == NO_SEGMENTS and episode.questions[0].written is False
    assert [text(each.ids) for each in episode.context] == [rendered(TALK)]
    assert counts.rows() == [("episodes", 1), ("questions", 1), ("without a history", 1)]


@pytest.mark.parametrize("write", ["all", "after", "user"])
def test_turn_by_turn_each_exchange_is_a_separate_text(write):
    [episode], _ = make(record(TALK), write=write, turn_by_turn=True)
    texts = [[TALK[0], *TALK[1:3]], [TALK[0], *TALK[3:5]]]
    assert [text(ids) for ids, _ in episode.passes] == [rendered(messages) for messages in texts]
    start = written("<S>system\nBe brief.<E>\n")
    for index, (ids, flags) in enumerate(episode.passes):
        unwritten = text([token for token, flag in zip(ids, flags, strict=True) if not flag])
        if write == "user":
            assert unwritten == rendered(texts[index]).replace(rendered([TALK[1 + 2 * index]]), "")
        else:
            assert unwritten == (start if index else "")
    [question] = episode.questions
    assert (question.written is False) == (write == "after")
    if write == "all":
        unwritten = [token for token, flag in zip(question.ids, question.written, strict=True) if not flag]
        assert text(unwritten) == start
    own = replace(record(TALK), turn_by_turn=True)
    assert make(own, write=write)[0] == [episode]
    assert make(replace(own, turn_by_turn=False), write=write, turn_by_turn=True) == make(record(TALK), write=write)


def test_turn_by_turn_whole_turns_are_kept():
    [episode], _ = make(record(TALK), turn_by_turn=True)
    first, second = episode.turns
    for length, turns in (
        (first + second, (first, second)),
        (first + second - 1, (second,)),
        (second, (second,)),
        (second - 1, (second - 1,)),
    ):
        [cut], counts = make(record(TALK), turn_by_turn=True, max_write_length=length)
        assert cut.turns == turns and cut.history.ids == episode.history.ids[-sum(turns) :]
        assert cut.written == episode.written[-sum(turns) :]
        assert counts.found["with the history cut to its end"] == (length < first + second)


def test_turn_by_turn_a_first_turn_is_written_whole():
    [episode], _ = make(record(TALK[:3]), write="all", turn_by_turn=True)
    assert episode.history == NO_SEGMENTS and episode.turns == () and episode.questions[0].written is True
    # Turns that end without a reply, and one that begins with a reply.
    messages = [TALK[0], TALK[2], TALK[1], TALK[3], *TALK[2:]]
    episodes, _ = make(record(messages), turn_by_turn=True)
    assert len(episodes[0].turns) == 3


@pytest.mark.parametrize("write", ["after", "all", "assistant"])
def test_an_answer_that_was_cut_has_no_end(write):
    cut = replace(record(TALK, "Ann"), cut=True, write=write)
    [whole], [episode] = make(replace(cut, cut=False), context=True)[0], make(cut, context=True)[0]
    ended = len(golden_tokenizer().encode(written("<E>\n")))
    for full, short in ((whole.questions, episode.questions), (whole.context, episode.context)):
        assert short[0].ids == full[0].ids[:-ended]
        assert (short[0].answer, short[0].value) == (full[0].answer, full[0].value)
        if write == "assistant" and short is episode.questions:
            assert short[0].written == full[0].written[:-ended]
    assert text(episode.questions[0].ids).endswith("You are Ann.")
    # The other answers were not cut.
    episodes, _ = make(cut, final_assistant_only=False)
    assert [text(each.questions[0].ids)[-4:] for each in episodes] == [written(".<E>\n")[-4:]] * 2 + ["Ann."]


def test_a_cut_answer_without_other_tokens_is_refused():
    source = "{% for m in messages %}<S>{{ m.role }}\n{{ m.content }}{% if not loop.last %}<E>\n{% endif %}{% endfor %}"
    maker = EpisodeMaker(with_template(source), EpisodeRules())
    # If the template writes nothing after the last answer, there is nothing to leave out.
    [episode] = maker.episodes([replace(record(TALK), cut=True)])
    assert maker.counts.errors == [] and text(episode.questions[0].ids).endswith("You are Ann.")


def test_target_and_weight_of_a_record():
    told = chat("I am Ann.", "Hello.")
    plain = record([*told, *chat("Who am I?", "You are Ann.")])
    own = replace(plain, target="frozen", weight=2.0)
    [episode], _ = make(plain, own)
    assert [(each.target, each.weight) for each in episode.questions] == [("", 1.0), ("frozen", 2.0)]


def test_each_answer_becomes_an_episode():
    episodes, _ = make(record(TALK, value="Ann"), final_assistant_only=False)
    histories = [rendered([TALK[0], *TALK[1:end]]) if end > 1 else "" for end in (1, 3, 5)]
    assert [text(episode.history.ids) for episode in episodes] == histories
    questions = [episode.questions[0] for episode in episodes]
    answers = [text(question.ids[question.answer :]) for question in questions]
    assert answers == [written(f"{answer}<E>\n") for answer in ("Hello.", "Fine.", "You are Ann.")]
    assert [text(question.ids[slice(*question.value)]) for question in questions] == ["", "", "Ann"]


def test_messages_after_an_answer_are_not_answers():
    messages = [{"role": "assistant", "content": "Welcome."}, *TALK[1:3], TALK[2], *TALK[3:]]
    episodes, counts = make(record(messages), final_assistant_only=False)
    assert [text(episode.history.ids) for episode in episodes] == [
        rendered(messages[:1]),
        rendered(messages[:4]),
        rendered(messages[:6]),
    ]
    assert counts.errors == []


def test_several_system_prompts_stay_on_both_sides():
    messages = [TALK[0], {"role": "system", "content": "Be kind."}, *TALK[1:]]
    [episode], _ = make(record(messages))
    assert text(episode.history.ids) == rendered(messages[:-2])
    assert text(episode.questions[0].ids) == rendered([*messages[:2], *messages[-2:]])


def test_long_texts_and_histories_keep_their_end():
    [whole], _ = make(record(TALK, "Ann"))
    [question] = whole.questions
    [cut], counts = make(record(TALK, "Ann"), max_write_length=20, max_seq_length=30)
    for part in ("ids", "message_ids", "sentence_ids"):
        assert getattr(cut.history, part) == getattr(whole.history, part)[-20:]
    missing = len(question.ids) - 30
    shifted = (question.value[0] - missing, question.value[1] - missing)
    assert cut.questions == (Question(question.ids[missing:], question.answer - missing, shifted),)
    assert counts.rows()[2:] == [("with the history cut to its end", 1), ("with the text cut to its end", 1)]
    longest = {"max_write_length": len(whole.history.ids), "max_seq_length": len(question.ids)}
    assert make(record(TALK, "Ann"), **longest)[0] == [whole]
    assert make(record(TALK), **longest)[1].rows() == [("episodes", 1), ("questions", 1)]


def test_an_answer_is_never_cut():
    answer = len(golden_tokenizer().encode(written("You are Ann.<E>\n")))
    [episode], _ = make(record(TALK), max_seq_length=answer + 1)
    assert episode.questions[0].answer == 1
    episodes, counts = make(record(TALK), max_seq_length=answer)
    assert episodes == []
    assert counts.rows() == [("too long", 1)]
    assert counts.errors == [
        f"here, message 6, is an answer of {answer} tokens; expected fewer than --max-seq-length, which is {answer}"
    ]


def test_a_teacher_reads_the_whole_chat():
    [episode], _ = make(record(TALK, "Ann"), context=True, max_seq_length=30)
    [whole], [question] = episode.context, episode.questions
    assert text(whole.ids) == rendered(TALK)
    assert whole.ids[whole.answer :] == question.ids[question.answer :]
    assert text(whole.ids[slice(*whole.value)]) == text(question.ids[slice(*question.value)]) == "Ann"
    [short], counts = make(record(TALK), context=True, max_write_length=20, max_seq_length=30)
    assert short.context[0].ids == whole.ids[-50:]
    assert counts.found["with the text cut to its end"] == 1


# Values


@pytest.mark.parametrize(
    ("answer", "value", "before"),
    [
        ("Ann", "Ann", ""),
        ("Ann, not Anna: Ann.", "Ann", "Ann, not Anna: "),
        ("It is Zürich!", "Zürich", "It is "),
        ("😀 and 😃", "😃", "😀 and "),
        ("the end", "end", "the "),
        ("assistant", "assistant", ""),
        ("a:im_end", "im_end", "a:"),
        ("a|b", "|", "a"),
    ],
)
def test_the_tokens_of_a_value(answer, value, before):
    [episode], counts = make(record(chat("Hi.", "Hello.", "What?", answer), value))
    [question] = episode.questions
    begin, end = question.value
    assert text(question.ids[begin:end]) == value
    assert text(question.ids[question.answer : begin]) == before
    assert "with a value that was not found" not in dict(counts.rows())


@settings(max_examples=100)
@given(st.text("an Zü😀.\n", min_size=1), st.data())
def test_the_tokens_of_any_value(answer, data):
    content = f"<{answer}>"
    begin, end = sorted(data.draw(st.lists(st.integers(0, len(content)), min_size=2, max_size=2, unique=True)))
    value = content[begin:end]
    [episode], _ = make(record(chat("What?", content), value))
    [question] = episode.questions
    begin, end = question.value
    ids = question.ids[question.answer :]
    begin, end = begin - question.answer, end - question.answer
    assert value in text(ids[begin:end])
    # The first and the last token have a part of the last mention. A token of this tokenizer is a few bytes.
    place = len(content[: content.rfind(value)].encode())
    assert _bytes(ids[:begin]) <= place < _bytes(ids[: begin + 1])
    assert _bytes(ids[: end - 1]) < place + len(value.encode()) <= _bytes(ids[:end])


def _bytes(ids: list[int]) -> int:
    # Byte-level tokenizers write each byte as one character.
    return sum(len(token) for token in golden_tokenizer().convert_ids_to_tokens(ids))


def test_a_value_that_the_template_changes_is_counted():
    tokenizer = with_template("{% for m in messages %}<S>{{ m.role }} {{ m.content | upper }}<E>{% endfor %}")
    maker = EpisodeMaker(tokenizer, EpisodeRules())
    [episode] = maker.episodes([record(chat("Hi.", "Hello.", "Who?", "Ann"), "Ann")])
    begin, end = episode.questions[0].value
    assert begin == end
    assert ("with a value that was not found", 1) in maker.counts.rows()


def test_a_value_belongs_to_the_last_answer():
    episodes, counts = make(record(chat("I am Ann.", "Ann?", "Who am I?", "Ann."), "Ann"), final_assistant_only=False)
    values = [text(question.ids[slice(*question.value)]) for episode in episodes for question in episode.questions]
    assert values == ["", "Ann"]
    assert "with a value that was not found" not in dict(counts.rows())


# Questions about one history


def test_questions_in_a_row_about_one_history_share_it():
    told, other = chat("I am Ann.", "Hello."), chat("I am Bob.", "Hello.")

    def asked(history: list[Message], question: str) -> Record:
        return record([*history, *chat(question, "Yes.")])

    records = [asked(told, str(number)) for number in range(5)] + [asked(other, "5"), asked(told, "6"), asked([], "7")]
    episodes, counts = make(*records, asked([], "8"), questions_per_write=3, context=True)
    assert [len(episode.questions) for episode in episodes] == [3, 2, 1, 1, 1, 1]
    questions = [question for episode in episodes for question in episode.questions]
    assert [text(question.ids).split("\n")[1][0] for question in questions] == [str(number) for number in range(9)]
    assert all(len(episode.context) == len(episode.questions) for episode in episodes)
    assert episodes[0].history == episodes[1].history == episodes[3].history != episodes[2].history
    assert counts.rows() == [("episodes", 6), ("questions", 9), ("without a history", 2)]
    assert [len(episode.questions) for episode in make(*records[:3], questions_per_write=1)[0]] == [1, 1, 1]


# Unusable records


@pytest.mark.parametrize(
    ("messages", "kind", "problem"),
    [
        (TALK[:-1], "wrong roles", "here does not end with an answer; expected an assistant's message last"),
        (TALK[:1], "wrong roles", "here does not end with an answer"),
        (
            [*TALK, TALK[-1]],
            "wrong roles",
            "here has no question before its last answer; expected a user",
        ),
        (TALK[:1] + TALK[-1:], "wrong roles", "here has no question before its last answer"),
        ([*TALK[1:3], TALK[0], *TALK[3:]], "wrong roles", "here has messages of system; expected system (first)"),
        ([{"role": "tool", "content": "x"}, *TALK], "wrong roles", "here has messages of system, tool; expected"),
        ([{"role": "a\nb", "content": "x"}, *TALK[1:]], "wrong roles", "here has messages of a?b; expected"),
        (
            [*TALK[:-1], {"role": "assistant", "content": " \n"}],
            "empty",
            "here, message 6, is empty; expected an answer",
        ),
    ],
)
def test_unusable_records_are_counted(messages, kind, problem):
    episodes, counts = make(record(messages))
    assert episodes == []
    assert counts.rows() == [(kind, 1)]
    assert len(counts.errors) == 1 and counts.errors[0].startswith(problem)
    maker = EpisodeMaker(golden_tokenizer(), EpisodeRules(), strict=True)
    with pytest.raises(RecordError) as caught:
        maker.episodes([record(TALK), record(messages)])
    assert str(caught.value) == counts.errors[0]


def test_a_chat_that_the_template_refuses():
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    maker = EpisodeMaker(with_template(source + "<S>{{ m.role }} {{ m.content }}<E>{% endfor %}"), EpisodeRules())
    assert len(maker.episodes([record(TALK, where="line 1"), record(TALK[1:], where="line 2")])) == 1
    assert maker.counts.found["refused by the chat template"] == 1
    assert maker.counts.errors[0].startswith("line 1, message 6, cannot be used: the chat template refuses 3 messages")


def test_an_answer_without_a_token_before_it_is_refused():
    maker = EpisodeMaker(with_template("{% for m in messages %}{{ m.content }}{% endfor %}"), EpisodeRules())
    assert len(maker.episodes([record(chat("Hi.", "Hello."))])) == 1
    assert maker.episodes([record(chat("", "Hello."))]) == []
    assert "the chat template writes no token before the answer" in maker.counts.errors[0]


def test_an_answer_with_other_tokens_after_the_whole_chat_is_refused():
    long = "{% if loop.last and messages | length > 4 %}at last, {% endif %}"
    source = f"{{% for m in messages %}}<S>{{{{ m.role }}}} {long}{{{{ m.content }}}}<E>{{% endfor %}}"
    maker = EpisodeMaker(with_template(source), EpisodeRules(), context=True)
    assert maker.episodes([record(TALK)]) == []
    assert "has other tokens after the whole chat" in maker.counts.errors[0]


def test_thinking_is_off_as_in_a_chat_session():
    source = (
        "{% for m in messages %}<S>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>"
        "{% endif %}{{ m.content }}<E>{% endfor %}{% if add_generation_prompt %}<S>assistant\n"
        "{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
    )
    plain = with_template(source)
    plain.add_tokens(["<think>", "</think>"], special_tokens=True)
    # With these tokens in the vocabulary, mlx-lm takes the model for one that thinks.
    tokenizer = TokenizerWrapper(plain._tokenizer)
    assert tokenizer.has_thinking
    [episode] = EpisodeMaker(tokenizer, EpisodeRules()).episodes([record(TALK)])
    [question] = episode.questions
    assert tokenizer.decode(question.ids[question.answer :]) == written("You are Ann.<E>")


def test_an_answer_begins_with_a_token_that_includes_the_end_of_the_prompt():
    tokenizer = golden_tokenizer()
    # Two tokens that become one token side by side.
    first, second = next(
        pair for pair in pairwise("the cat and the end of the tin is near") if len(tokenizer.encode("".join(pair))) == 1
    )
    source = "{% for m in messages %}<S>{{ m.role }}@{{ m.content }}<E>{% endfor %}{% if add_generation_prompt %}"
    tokenizer = with_template(f"{source}<S>assistant@{{% endif %}}".replace("@", first))
    [episode] = EpisodeMaker(tokenizer, EpisodeRules()).episodes([record(chat("a", f"{second}x"))])
    [question] = episode.questions
    assert tokenizer.decode(question.ids[question.answer :]) == f"{first}{written(second + 'x<E>')}"


MESSAGES = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant", "user", "assistant", "system"]),
        st.sampled_from(["", "Ann", "Bob is here. Yes!"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60)
@given(st.lists(MESSAGES, max_size=6), st.integers(1, 3), st.integers(1, 2))
def test_nothing_is_dropped_silently(chats, recent, shared):
    records = [record(messages, where=f"line {number}") for number, messages in enumerate(chats, 1)]
    bad = RecordError("line 9 is not JSON")
    rules = {"recent_messages": recent, "questions_per_write": shared, "max_seq_length": 60, "max_write_length": 40}
    episodes, counts = make(*records, bad, **rules)
    assert counts.found["questions"] == sum(len(episode.questions) for episode in episodes)
    assert counts.found["episodes"] == len(episodes)
    assert counts.found["questions"] + len(counts.errors) == len(records) + 1
    assert sum(count for name, count in counts.rows() if not name.startswith(("episodes", "with", "questions"))) == len(
        counts.errors
    )
    for episode in episodes:
        assert len(episode.history.ids) == len(episode.history.message_ids) == len(episode.history.sentence_ids) <= 40
        for question in episode.questions:
            assert 0 < question.answer < len(question.ids) <= 60
