"""Chat templates: golden chats, templates with many habits, tools, tokenizers, and random texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace, PreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mlx_deltamem.sessions.template.chat_template import ChatTemplate, sentences
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import Segments, token_roles
from tests.conftest import GOLDENS, backbone, golden_names
from tests.tool_messages import call

SEGMENTATION = json.loads((GOLDENS / "segmentation.json").read_text())["cases"]
Spans = list[tuple[int, str]]


@cache
def golden_tokenizer(name: str = "qwen3-tiny") -> TokenizerWrapper:
    return load_tokenizer(Path(backbone(name)))


def written(text: str) -> str:
    """Replace <S>, <E> and <B> by special tokens."""
    return text.replace("<S>", "<|im_start|>").replace("<E>", "<|im_end|>").replace("<B>", "<|endoftext|>")


def chat_template(source: str, **options: object) -> ChatTemplate:
    return ChatTemplate(golden_tokenizer(), chat_template=written(source), **options)


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """A chat of user and assistant in turn, after a system prompt if there is one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def in_full(expected: Spans) -> Spans:
    return [(message, written(text)) for message, text in expected]


def spans(segments: Segments) -> Spans:
    """The text of each run of tokens with one message id."""
    runs = groupby(zip(segments.message_ids, segments.ids, strict=True), key=lambda pair: pair[0])
    return [(message, golden_tokenizer().decode([id_ for _, id_ in run])) for message, run in runs]


def sentence_texts(segments: Segments) -> dict[int, str]:
    by_sentence: dict[int, list[int]] = {}
    for sentence, id_ in zip(segments.sentence_ids, segments.ids, strict=True):
        by_sentence.setdefault(sentence, []).append(id_)
    return {sentence: golden_tokenizer().decode(ids) for sentence, ids in by_sentence.items() if sentence >= 0}


# Golden data


@pytest.mark.parametrize("case", SEGMENTATION)
def test_golden_chats(case: dict):
    template = ChatTemplate(golden_tokenizer())
    segments = template.whole(case["messages"], case["add_generation_prompt"])
    assert segments == Segments(case["input_ids"], case["message_ids"], case["sentence_ids"])


@pytest.mark.parametrize("case", SEGMENTATION[::2])
def test_golden_sentences(case: dict):
    encode = golden_tokenizer().encode
    golden = zip(case["messages"], case["sentence_chunks"], case["chunk_tokens_differ"], strict=True)
    for message, chunks, differ in golden:
        assert sentences(message["content"]) == [chunk for chunk in chunks if chunk]
        assert ([id_ for chunk in chunks for id_ in encode(chunk)] != encode(message["content"])) == differ


@pytest.mark.parametrize("name", golden_names("sessions"))
def test_golden_sessions(name: str):
    session = json.loads((GOLDENS / "sessions" / f"{name}.json").read_text())
    template = ChatTemplate(golden_tokenizer(session["backbone"]))
    messages = chat(system=session["system"])
    read = Segments([], [], [])
    for index, turn in enumerate(session["turns"]):
        edit = session["edit"] if session["edit"] and session["edit"]["before_turn"] == index else None
        if edit:
            messages[edit["message_index"]]["content"] = edit["content"]
        messages.append({"role": "user", "content": turn["user"]})
        if edit:
            read = Segments([], [], [])
            opening = template.whole(messages, generation_prompt=True)
        else:
            opening = template.opening(messages, max([-1, *read.sentence_ids]) + 1)
        generated = turn["generated_ids"]
        messages.append({"role": "assistant", "content": turn["assistant"]})
        ending = template.ending(messages)
        reply = Segments(
            generated,
            [max(opening.message_ids) + 1] * len(generated),
            [max([-1, *read.sentence_ids, *opening.sentence_ids]) + 1] * len(generated),
        )
        prompt, *decoded, last = turn["forwards"]
        assert [prompt["kind"], last["kind"]] == ["prompt", "materialize"]
        assert (opening.ids, opening.message_ids) == (prompt["input_ids"], prompt["message_ids"])
        assert ending == Segments(last["input_ids"], last["message_ids"], last["sentence_ids"])
        assert [[id_] for id_ in reply.message_ids] == [each["message_ids"] for each in decoded]
        if name == "sentence_mean":
            assert opening.sentence_ids == prompt["sentence_ids"]
            assert [[id_] for id_ in reply.sentence_ids] == [each["sentence_ids"] for each in decoded]
        assert read.ids + opening.ids == turn["prompt_ids"]
        read = joined(read, opening, reply, ending)
        assert read.ids == turn["full_ids_after_turn"]
    final = session["final"]
    assert messages == final["messages"]
    whole = template.whole(messages)
    assert whole.ids == read.ids
    assert whole.message_ids == read.message_ids == final["cached_message_ids"]
    # A whole chat looks for the text of its replies: `i` is in the word `assistant` first, so read.sentence_ids differ.
    assert name != "sentence_mean" or whole.sentence_ids == final["cached_sentence_ids"]


def joined(*pieces: Segments) -> Segments:
    """The segments of a chat from its pieces. A generation prompt belongs to the reply after it."""
    ids, message_ids, sentence_ids = [], [], []
    for piece in pieces:
        ids += piece.ids
        if piece.message_ids and piece.message_ids[0] >= 0:
            prompt = next((i for i, id_ in enumerate(reversed(message_ids)) if id_ >= 0), 0)
            message_ids[len(message_ids) - prompt :] = [piece.message_ids[0]] * prompt
        message_ids += piece.message_ids
        sentence_ids += piece.sentence_ids
    return Segments(ids, message_ids, sentence_ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One\n\n\nTwo\nThree", ["One", "\n\n\nTwo\nThree"]),
        ("\n\nOne.  ", ["\n\nOne.", "  "]),
        ("One.\n \n\nTwo", ["One.", "\n \n\nTwo"]),
        ("(“One.”) Two", ["(“One.", "”) Two"]),
        ("e.g.: 3.5; x", ["e.g.:", " 3.5;", " x"]),
        ("One.} Two, 'three!' four", ["One.} Two, 'three!", "' four"]),
        ("One. . Two", ["One.", " .", " Two"]),
        ("One.\u00a0Two。 Three", ["One.", "\u00a0Two。 Three"]),
    ],
)
def test_sentences(text: str, expected: list[str]):
    assert sentences(text) == expected


# Templates

TURNS = "{% for m in messages %}<S>{{ m.role }}\n{{ m.content }}<E>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<S>assistant\n{% endif %}"
CHATML = TURNS + ASK


@dataclass
class Habit:
    """A template, and the expected text of the turns " Hi. ", "<think>So</think>Ok." and "Why?".

    `appends`: the pieces, with the reply between them, are the whole chat.
    """

    template: str
    first: Spans
    ending: str
    second: Spans
    system: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    appends: bool = True


HABITS = {
    "ChatML": Habit(
        CHATML,
        [(0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")],
    ),
    "a BOS token, and a system prompt": Habit(
        "<B>" + CHATML,
        [(-1, "<B><S>system\nBe kind.<E>\n"), (0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")],
        system="Be kind.",
    ),
    "a default system prompt": Habit(
        "{% if messages[0].role != 'system' %}<S>system\nBe brief.<E>\n{% endif %}" + CHATML,
        [(-1, "<S>system\nBe brief.<E>\n"), (0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")],
    ),
    "the system prompt in the first turn": Habit(
        "<B>{% for m in messages %}{% if m.role == 'user' %}<S>U "
        "{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}<E>{% elif m.role == 'assistant' %}<S>A {{ m.content }}<E>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<S>A {% endif %}",
        [(-1, "<B><S>U Be kind."), (0, "\n\n Hi. <E>"), (-1, "<S>A ")],
        "<E>",
        [(2, "<S>U Why?<E>"), (-1, "<S>A ")],
        system="Be kind.",
    ),
    "the system prompt in the last turn": Habit(
        "<B>{% for m in messages %}{% if m.role == 'user' %}<S>"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}<E>"
        "{% elif m.role == 'assistant' %}{{ m.content }}<B>{% endif %}{% endfor %}",
        [(-1, "<B>"), (0, "<S>Be kind.  Hi. <E>")],
        "<B>",
        [(2, "<S>Be kind. Why?<E>")],
        system="Be kind.",
        appends=False,
    ),
    "only users and assistants in turn": Habit(
        "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML,
        [(0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")],
    ),
    "stripped content, BOS at each turn": Habit(
        "{% for m in messages %}{% if m.role == 'user' %}<B>[{{ m.content | trim }}]{% else %} {{ m.content | trim }} "
        "<E>{% endif %}{% endfor %}",
        [(0, "<B>[Hi.]")],
        " <E>",
        [(2, "<B>[Why?]")],
        appends=False,
    ),
    "no thoughts in earlier replies, an empty one in the last and in the generation prompt": Habit(
        "{% for m in messages %}<S>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<E>\n{% endfor %}"
        "{% if add_generation_prompt %}<S>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
        [(0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n<think>\n\n</think>\n\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n<think>\n\n</think>\n\n")],
        options={"enable_thinking": False},
        appends=False,
    ),
    "an open thought in the generation prompt": Habit(
        TURNS + "{% if add_generation_prompt %}<S>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}",
        [(0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n<think>\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n<think>\n")],
        options={"enable_thinking": True},
        appends=False,
    ),
    "nothing after a reply until the next turn": Habit(
        "<B>{% for m in messages %}{% if not loop.first %}<E>{% endif %}{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<E>assistant: {% endif %}",
        [(0, "<B>user:  Hi. "), (-1, "<E>assistant: ")],
        "",
        [(2, "<E>user: Why?"), (-1, "<E>assistant: ")],
    ),
    "an EOS token where no reply is asked for": Habit(
        "{% for m in messages %}<S>{{ m.role }} {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<S>assistant {% else %}<E>{% endif %}",
        [(0, "<S>user  Hi. \n"), (-1, "<S>assistant ")],
        "\n",
        [(2, "<S>user Why?\n"), (-1, "<S>assistant ")],
    ),
    "another token after the last reply than after others": Habit(
        "{% for m in messages %}<S>{{ m.role }} {{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<E>{% else %}<B>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<S>assistant {% endif %}",
        [(0, "<S>user  Hi. <B>"), (-1, "<S>assistant ")],
        "",
        [(2, "<B><S>user Why?<B>"), (-1, "<S>assistant ")],
    ),
    "a date and a count at the start": Habit(
        "On {{ strftime_now('%Y')[:2] }} {{ messages | length > 2 }}<E>" + CHATML,
        [(-1, "On 20 False<E>"), (0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")],
        appends=False,
    ),
    "numbered turns": Habit(
        "{% for m in messages %}<S>{{ loop.index }} {{ m.content }}<E>\n{% endfor %}"
        "{% if add_generation_prompt %}<S>{{ messages | length + 1 }} {% endif %}",
        [(0, "<S>1  Hi. <E>\n"), (-1, "<S>2 ")],
        "<E>\n",
        [(2, "<S>3 Why?<E>\n"), (-1, "<S>4 ")],
    ),
    "no generation prompt": Habit(
        TURNS,
        [(0, "<S>user\n Hi. <E>\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n")],
        appends=False,
    ),
    "a switch in the new message": Habit(
        TURNS + "{% if add_generation_prompt %}<S>assistant\n"
        "{% if messages[-1].content.startswith('Why') %}<think>{% endif %}{% endif %}",
        [(0, "<S>user\n Hi. <E>\n"), (-1, "<S>assistant\n")],
        "<E>\n",
        [(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n<think>")],
    ),
}


@pytest.mark.parametrize("name", HABITS)
def test_a_chat_turn_by_turn(name: str):
    habit = HABITS[name]
    template = chat_template(habit.template, **habit.options)
    messages = chat(" Hi. ", "<think>So</think>Ok.", "Why?", system=habit.system)
    first, ending = template.opening(messages[:-2]), template.ending(messages[:-1])
    second = template.opening(messages, first_sentence=7)
    assert spans(first) == in_full(habit.first)
    assert spans(ending) == in_full([(1, habit.ending)] * bool(habit.ending))
    assert spans(second) == in_full(habit.second)
    assert first == template.whole(messages[:-2], generation_prompt=True)
    assert set(ending.sentence_ids) <= {-1} and sentence_texts(second) == {7: "Why?"}
    whole = template.whole(messages, generation_prompt=True)
    assert spans(whole)[-len(habit.second) :] == in_full(habit.second)
    pieces = [*first.ids, *golden_tokenizer().encode(messages[-2]["content"]), *ending.ids, *second.ids]
    assert (pieces == whole.ids) == habit.appends


@pytest.mark.parametrize(
    ("template", "messages", "problem"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
            chat("Hi", "Ok", "Why?", system="Be kind."),
            r"refuses 4 messages \(system, user, assistant, user\) \(no system\)",
        ),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML,
            chat("Hi", "Ok", "Why?"),
            r"refuses 3 messages \(user, assistant, user\) \(one turn only\)",
        ),
        (
            "{% for m in messages %}{{ m.content }} ({{ loop.revindex }} left)<E>{% endfor %}",
            chat("Hi", "Ok", "Why?"),
            r"ends message \d with ' \(1 left\)<\|im_end\|>', but goes on with ' \(\d left\)<",
        ),
        (
            "{% for m in messages if m.role == 'user' %}<S>{{ m.content }}<E>{% endfor %}",
            chat("Hi", "Ok", "Why?"),
            r"content of message 1 \(assistant\) 0 times; expected once",
        ),
        (
            CHATML + "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<E>{% endfor %}",
            chat("Hi", "Ok", "Why?"),
            r"content of message 1 \(assistant\) 2 times; expected once",
        ),
        (
            TURNS + "{% if add_generation_prompt %}{{ messages[-1].content[-1] }}{% endif %}",
            chat("Hi", "Ok", "Why?"),
            "content of message 2 .* 2 times; expected once",
        ),
        (
            TURNS + "{% if add_generation_prompt %}{{ messages[-1].content | length }}{% endif %}",
            chat("Hi", "Ok", "Why?"),
            "lets the content of message 2 decide what it writes later",
        ),
        ("{{ messages[0].parts[0] }}", chat("Hi", "Ok", "Why?"), "refuses 3 messages .*UndefinedError: .*has no"),
        (
            "{{ messages | length + 'x' }}" + CHATML,
            chat("Hi", "Ok", "Why?"),
            r"refuses 3 messages .* \(TypeError: unsupp",
        ),
        ("{{ 1 // 0 }}" + CHATML, chat("Hi", "Ok", "Why?"), r"refuses 3 messages .* \(ZeroDivisionError: "),
        ("{{ {}.popitem() }}" + CHATML, chat("Hi", "Ok", "Why?"), r"refuses 3 messages .* \(.*Error: "),
        ("{% for m in messages %}\n{% endfo %}", chat("Hi", "Ok", "Why?"), r"refuses .* \(TemplateSyntaxError: "),
        ("{{ raise_exception('no\n\ntools') }}", chat("Hi", "Ok", "Why?"), r"refuses 3 messages .* \(no tools\)"),
        (
            "{{ raise_exception('n' * 999) }}",
            chat("Hi", "Ok", "Why?"),
            r"refuses 3 messages .*n{200}\.{3}\); expected",
        ),
    ],
)
def test_templates_that_are_refused(template: str, messages: list[Message], problem: str):
    with pytest.raises(ValueError, match=problem) as whole:
        chat_template(template).whole(messages, generation_prompt=True)
    with pytest.raises(ValueError, match=problem) as opening:
        chat_template(template).opening(messages)
    for error in (whole, opening):
        assert "\n" not in str(error.value) and str(error.value).endswith("another chat template")


def test_an_ending_that_is_taken_back_is_refused_before_it_is_used():
    template = chat_template("{% for m in messages %}{{ m.content }} {{ loop.revindex }}<E>{% endfor %}")
    with pytest.raises(ValueError, match="but goes on with"):
        template.ending(chat("Hi", "Ok"))
    with pytest.raises(ValueError, match="but goes on with") as error:
        template.opening(chat("Hi", "Ok", "Why? " * 1000))
    assert len(str(error.value)) < 300


def test_a_reply_that_is_cut_off_in_its_thoughts():
    turn = "<S>{{ m.role }} {{ m.content.split('<think>')[0] }}<E>"
    template = chat_template("{% for m in messages %}" + turn + "{% endfor %}")
    messages = chat("Hi.", "<think>So", "Why?")
    assert spans(template.ending(messages[:2])) == in_full([(1, "<E>")])
    assert spans(template.opening(messages)) == in_full([(2, "<S>user Why?<E>")])
    assert spans(template.whole(messages))[1:] == in_full([(1, "<S>assistant <E>"), (2, "<S>user Why?<E>")])


def test_no_chat_template():
    tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=golden_tokenizer().backend_tokenizer))
    with pytest.raises(ValueError, match="the tokenizer has no chat template; expected"):
        ChatTemplate(tokenizer)
    tokenizer.chat_template = written(CHATML)
    assert spans(ChatTemplate(tokenizer).whole(chat("Hi"))) == in_full([(0, "<S>user\nHi<E>\n")])


def test_the_wrong_message_at_the_end():
    template = ChatTemplate(golden_tokenizer())
    for messages in ([], chat("Hi", "Ok")):
        with pytest.raises(ValueError, match=r"opening got . messages? .*; expected a new message at the end"):
            template.opening(messages)
    for messages in ([], chat("Hi"), chat(system="Be kind.")):
        with pytest.raises(ValueError, match=r"ending got . messages? .*; expected a reply at the end"):
            template.ending(messages)


def test_the_wrong_number_of_new_messages():
    template = ChatTemplate(golden_tokenizer())
    for messages, new in ((chat("Hi"), 2), (chat("Hi"), 0), (chat("Hi"), -1), (chat("Hi", "Ok", "Why?"), 2)):
        with pytest.raises(ValueError, match=rf"opening got . messages? .*; expected {new} new messages at the end"):
            template.opening(messages, new=new)


@pytest.mark.parametrize(
    "options",
    [
        {"tokenize": True},
        {"messages": []},
        {"conversation": [], "enable_thinking": True},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"return_dict": True, "return_tensors": "np"},
    ],
)
def test_options_that_are_the_chats_own(options: dict[str, object]):
    names = ", ".join(sorted(set(options) - {"enable_thinking"}))
    with pytest.raises(ValueError, match=f"the template options name {names}; expected options that"):
        ChatTemplate(golden_tokenizer(), **options)


def test_text_that_is_not_utf8():
    template = ChatTemplate(golden_tokenizer())
    for messages, place in (
        (chat("Hi", system="\ud83d"), r"message 0 \(system\)"),
        (chat("Hi", "Ok", "\ud83d"), r"message 2 \(user\)"),
    ):
        with pytest.raises(ValueError, match=f"{place} is not UTF-8; expected text") as error:
            template.opening(messages)
        assert not isinstance(error.value, UnicodeError)
    template = chat_template("{{ note }}" + CHATML, note="\ud83d")
    with pytest.raises(ValueError, match="what the chat template adds is not UTF-8"):
        template.opening(chat("Hi"))


def test_marks_that_are_in_use():
    tools = [{"type": "function", "function": {"name": "\ue000"}}]
    template = chat_template("{{ tools | tojson }}" + CHATML, tools=tools)
    messages = [{"role": "user", "content": "Hi", "name": "\ue001"}, *chat("Hi", "Ok")[1:], *chat("\ue002?")]
    template = chat_template(
        "{% for m in messages %}{{ m.name }}{% endfor %}{{ tools | tojson }}" + CHATML, tools=tools
    )
    assert spans(template.opening(messages)) == in_full([(2, "<S>user\n\ue002?<E>\n"), (-1, "<S>assistant\n")])


def test_messages_stay_as_they_are():
    messages = chat("Hi", "Ok", "Why?", system="Be kind.")
    ChatTemplate(golden_tokenizer()).opening(messages)
    assert messages == chat("Hi", "Ok", "Why?", system="Be kind.")


def test_system_prompts_are_in_no_message():
    template = ChatTemplate(golden_tokenizer())
    messages = [*chat("Hi.", "Ok.", system="Be kind."), {"role": "system", "content": "Be brief."}, *chat("Why?")]
    assert [message for message, _ in spans(template.whole(messages))] == [-1, 0, 1, -1, 2]
    assert sentence_texts(template.whole(messages)) == {0: "Hi.", 1: "Ok.", 2: "Why?"}
    assert spans(template.opening(messages)) == in_full([(2, "<S>user\nWhy?<E>\n"), (-1, "<S>assistant\n")])
    assert set(template.whole(messages[:1], generation_prompt=True).message_ids) == {-1}


# Tools, and several new messages

ONE_BLOCK = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if system or tools %}<S>system\n{{ system }}"
    "{% if tools %}{{ '\n\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "<E>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<S>user' if loop.first or loop.previtem.role != 'tool' }}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<E>\n{% endif %}"
    "{% elif m.role != 'system' or not loop.first %}<S>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}{{ '\n<tool_call>' }}\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<E>\n"
    "{% endif %}{% endfor %}" + ASK
)
# Its borders lie in the middle of a special token's text: <|im_end|> against <|im_start|>.
TOUCHING = (
    "{% for m in messages %}{% if m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<S>{% endif %}"
    "{{ m.content }}{% if loop.last or loop.nextitem.role != 'tool' %}<E>{% else %}<S>{% endif %}"
    "{% else %}<S>{{ m.role }}\n{{ m.content }}<E>\n{% endif %}{% endfor %}" + ASK
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
REPLY = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'


def result(content: str) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "0a1b2c3d4"}


WITH_TOOLS = [
    chat(system="Be kind.") + chat("Add 1 and 2. Then 3 and 4!"),
    [{"role": "assistant", "content": f"So.\n{REPLY}\n{REPLY}"}],
    [result("3. Done"), result("7")],
    [{"role": "assistant", "content": REPLY}],
    [result(""), *chat("Stop. Now!"), result("")],
    [{"role": "assistant", "content": "3 and 7."}],
    chat("Thanks."),
    [{"role": "assistant", "content": "Ok"}],
    [{"role": "system", "content": "Be brief."}, *chat("And?")],
]


@pytest.mark.parametrize("source", [CHATML, ONE_BLOCK, TOUCHING])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("turns", [WITH_TOOLS, [WITH_TOOLS[0][1:], *WITH_TOOLS[1:]]])
def test_turn_by_turn_with_tools(source: str, tools: list[dict] | None, turns: list[list[Message]]):
    template = chat_template(source, tools=tools)
    messages, read = [], Segments([], [], [])
    for turn in turns:
        messages += turn
        used = max([-1, *read.sentence_ids]) + 1
        if turn[0]["role"] == "assistant":
            reply = golden_tokenizer().encode(turn[0]["content"])
            ending = template.ending(messages)
            read = joined(read, Segments(reply, ending.message_ids[:1] * len(reply), [used] * len(reply)), ending)
            assert read.ids == template.whole(messages).ids
            assert read.message_ids == template.whole(messages).message_ids
        else:
            opening = template.opening(messages, used, new=len(turn))
            read = joined(read, opening)
            whole = template.whole(messages, generation_prompt=True)
            assert (read.ids, read.message_ids) == (whole.ids, whole.message_ids)
    by_sentence = sentence_texts(read)
    assert [text for text in by_sentence.values() if "tool_call" not in text] == (
        ["Add 1 and 2.", " Then 3 and 4!", "3.", " Done", "7", "Stop.", " Now!", "3 and 7.", "Thanks.", "Ok", "And?"]
    )


def test_tool_results_in_one_block():
    template = chat_template(ONE_BLOCK, tools=TOOLS)
    messages = [*WITH_TOOLS[0], *WITH_TOOLS[1], *WITH_TOOLS[2], result("8")]
    opening = template.opening(messages, new=3)
    assert spans(opening) == in_full(
        [
            (2, "<S>user\n<tool_response>\n3. Done\n</tool_response>"),
            (3, "\n<tool_response>\n7\n</tool_response>"),
            (4, "\n<tool_response>\n8\n</tool_response><E>\n"),
            (-1, "<S>assistant\n"),
        ]
    )
    first = template.opening(messages[:2])
    assert spans(first)[0][1].startswith(written("<S>system\nBe kind.\n\n# Tools\n{"))
    assert spans(first)[1:] == in_full([(0, "<S>user\nAdd 1 and 2. Then 3 and 4!<E>\n"), (-1, "<S>assistant\n")])
    with pytest.raises(ValueError, match=r"ends message 3 with .* but goes on with"):
        template.opening(messages, new=2)


def test_a_border_within_the_text_of_a_special_token():
    messages = [*WITH_TOOLS[0], *WITH_TOOLS[1], *WITH_TOOLS[2]]
    opening = chat_template(TOUCHING).opening(messages, new=2)
    assert spans(opening) == in_full([(2, "<S>3. Done"), (3, "<S>7<E>"), (-1, "<S>assistant\n")])


def test_only_tool_messages_may_share_an_end():
    block = ONE_BLOCK.replace("'tool'", "'user'")
    with pytest.raises(ValueError, match=r"ends message 0 with .* but goes on with"):
        chat_template(block).opening([*chat("Hi"), *chat("Ho")], new=2)


def test_calls_of_a_reply_that_was_not_generated():
    messages = [*chat("Hi"), {"role": "assistant", "content": "", "tool_calls": [call("add", {"a": 1})]}, result("7")]
    whole = chat_template(ONE_BLOCK).whole(messages)
    calls = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert spans(whole)[1] == (1, written(f"<S>assistant\n{calls}<E>\n"))


@pytest.mark.parametrize(
    ("earlier", "new", "first_message", "roles"),
    [
        ([], WITH_TOOLS[0], 0, ["system", "user", "assistant"]),
        ([], WITH_TOOLS[0][:1], 0, ["system"]),
        (WITH_TOOLS[:2], WITH_TOOLS[2], 2, ["tool", "assistant"]),
        (WITH_TOOLS[:4], WITH_TOOLS[4], 5, ["tool", "user", "tool", "assistant"]),
        (WITH_TOOLS[:8], WITH_TOOLS[8], 11, ["system", "user", "assistant"]),
        (WITH_TOOLS[:6], [*WITH_TOOLS[6], *WITH_TOOLS[8]], 9, ["user", "system", "user", "assistant"]),
        (WITH_TOOLS[:6], [*WITH_TOOLS[6], WITH_TOOLS[8][0]], 9, ["user", "assistant"]),
    ],
)
def test_token_roles(earlier: list[list[Message]], new: list[Message], first_message: int, roles: list[str]):
    template = chat_template(ONE_BLOCK, tools=TOOLS)
    before = [message for turn in earlier for message in turn]
    opening = template.opening([*before, *new], new=len(new))
    found = token_roles(opening, new, first_message)
    assert len(found) == len(opening.ids)
    assert [role for role, _ in groupby(found)] == roles
    for role, index in zip(found, opening.message_ids, strict=True):
        assert index < 0 or role == [m for m in new if m["role"] != "system"][index - first_message]["role"]


def test_roles_of_other_messages():
    opening = ChatTemplate(golden_tokenizer()).opening(chat("Hi", "Ok", "Why?"))
    for first_message in (1, 3):
        with pytest.raises(
            ValueError, match=f"belongs to message 2; expected one of the 1 messages from {first_message}"
        ):
            token_roles(opening, chat("Why?"), first_message)


# Tokenizers


def test_no_second_bos_token():
    backend = Tokenizer.from_str(golden_tokenizer().backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ 1 }}"))
    assert tokenizer.encode("Hi")[0] == 0
    template = ChatTemplate(tokenizer, chat_template=written("<B>" + CHATML))
    messages = chat("Hi. Ho.", "Ok.", "Why?")
    assert template.opening(messages[:1]).ids.count(0) == template.whole(messages).ids.count(0) == 1
    assert 0 not in [*template.ending(messages[:2]).ids, *template.opening(messages).ids]
    assert list(sentence_texts(template.whole(messages))) == [0, 1, 2, 3]


def character_tokenizer(
    template: str, merges: Sequence[tuple[str, str]] = (), pre_tokenizer: PreTokenizer | None = None
) -> TokenizerWrapper:
    """A tokenizer of printable ASCII, which drops other characters."""
    tokens = ["▁", *map(chr, range(32, 127)), *("".join(merge) for merge in merges)]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template))


@pytest.mark.parametrize(
    ("turn", "ask", "messages", "tokens", "message_ids"),
    [
        (
            "_{{ m.role[0] }}:{{ m.content }}_",
            "_a:",
            chat("ab", "c"),
            "_ u : ab __ a : c __ a :",
            [0] * 4 + [1] * 4 + [-1] * 3,
        ),
        ("{% if not loop.first %}_{% endif %}{{ m.content }}_", "", chat("", "", ""), "__ __ _", [1, 2, 2]),
    ],
)
def test_a_token_across_a_border_is_the_later_messages(
    turn: str, ask: str, messages: list[Message], tokens: str, message_ids: list[int]
):
    source = "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + ask + "{% endif %}"
    tokenizer = character_tokenizer(source, merges=[("_", "_"), ("a", "b")])
    whole = ChatTemplate(tokenizer).whole(messages, generation_prompt=True)
    assert tokenizer.convert_ids_to_tokens(whole.ids) == tokens.split()
    assert whole.message_ids == message_ids


def test_tokens_that_depend_on_the_text_before():
    source = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }};{% endfor %}"
    tokenizer = character_tokenizer(source, pre_tokenizer=Metaspace(prepend_scheme="always", split=False))
    whole = ChatTemplate(tokenizer).whole(chat("a b", "c", "d"))
    assert "".join(tokenizer.convert_ids_to_tokens(whole.ids)) == "▁[u]a▁b;[a]c;[u]d;"
    assert whole.message_ids == [0] * 8 + [1] * 5 + [2] * 5


def test_a_sentence_without_tokens_has_no_id():
    tokenizer = character_tokenizer("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    whole = ChatTemplate(tokenizer).whole(chat("a\n\né\n\nb"))
    assert tokenizer.convert_ids_to_tokens(whole.ids) == ["[", "a", "b", "]"]
    assert whole.sentence_ids == [-1, 0, 1, -1]


# Any text

SPECIAL = [written(text) for text in ("<S>", "<E>", "<E>\n<S>user\n", "<B>")]
AWKWARD = [*SPECIAL, "\ue000", "\ue001", "\n", "\n\n", ". ", '." ', "user", " "]
contents = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), max_size=6).map("".join)
chats = st.builds(
    lambda texts, system: chat(*texts, system=system),
    st.lists(contents, min_size=1, max_size=5).map(lambda texts: texts if len(texts) % 2 else texts[1:]),
    st.none() | contents,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-tiny", "smollm3-tiny"])
@given(messages=chats)
def test_turn_by_turn_is_the_whole_chat(name: str, messages: list[Message]):
    tokenizer = golden_tokenizer(name)
    template = ChatTemplate(tokenizer)
    read = Segments([], [], [])
    for index, message in enumerate(messages):
        before, now = messages[:index], messages[: index + 1]
        if message["role"] == "user":
            used = max([-1, *template.whole(before).sentence_ids]) + 1 if before else 0
            opening = template.opening(now, used)
            read = joined(read, opening)
            whole = template.whole(now, generation_prompt=True)
            assert opening.sentence_ids == whole.sentence_ids[-len(opening.ids) :]
        elif message["role"] == "assistant":
            reply = tokenizer.encode(message["content"])
            ending = template.ending(now)
            read = joined(read, Segments(reply, ending.message_ids[:1] * len(reply), [-1] * len(reply)), ending)
            whole = template.whole(now)
        else:
            continue
        assert read.ids == whole.ids
        assert read.message_ids == whole.message_ids


@given(messages=chats)
def test_every_message_has_its_text(messages: list[Message]):
    whole = ChatTemplate(golden_tokenizer()).whole(messages)
    texts = [written(f"<S>{message['role']}\n{message['content']}<E>\n") for message in messages]
    first = messages[0]["role"] == "system"
    assert spans(whole) == list(enumerate(texts, -1 if first else 0))
    by_sentence = list(sentence_texts(whole).values())
    for message in messages[first:]:
        content = message["content"]
        pieces = sentences(content)
        assert "".join(pieces) == content and all(pieces)
        found = by_sentence[: len(pieces)] == pieces
        assert found or by_sentence[:1] == [content]
        by_sentence = by_sentence[len(pieces) if found else 1 :]
    assert not by_sentence


@pytest.mark.slow
@given(messages=chats)
def test_a_template_that_strips_and_rewrites(messages: list[Message]):
    habit = HABITS["no thoughts in earlier replies, an empty one in the last and in the generation prompt"]
    template = chat_template(habit.template.replace("m.content ", "m.content | trim "))
    whole = template.whole(messages, generation_prompt=True)
    begins = [text.partition("\n")[0] for _, text in spans(whole)]
    assert begins == [written(f"<S>{message['role']}") for message in [*messages, {"role": "assistant"}]]
    opening = template.opening(messages)
    assert opening.ids == whole.ids[-len(opening.ids) :]
    assert opening.message_ids == whole.message_ids[-len(opening.ids) :]
