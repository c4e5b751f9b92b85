"""Every condition equals its plainest implementation, and no question affects the next one."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem import ChatSession, detach, load, make_prompt_cache, memory, read_only
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.evaluation.asking import Job, Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS, find_condition, parse_conditions
from mlx_deltamem.evaluation.partners import partner_groups
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Sampling
from mlx_deltamem.sessions.reading.prefill import prefill, write_text
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.segments import Segments
from tests.conftest import adapter, backbone
from tests.evaluation.runs import asker, loaded, questions, replies

ADAPTERS = ("qwen3_tsw_qo", "qwen3_msw4", "qwen3_ssw_msg", "qwen3_ssw_sent")
every_adapter = pytest.mark.parametrize("name", ADAPTERS)
# The mode for conditions that leave open whether the question is written.
WRITE = {True: "all", False: "after"}


def plain_reply(model, tokenizer, cache: PromptCache, segments: Segments, writing: bool, question: Question) -> str:
    """Greedy decoding, one call of the model for the prompt and one for each token."""
    token = prefill(model, cache, segments, writing).argmax().item()
    ids = []
    while token not in tokenizer.eos_token_ids:
        ids.append(token)
        if len(ids) == question.max_tokens:
            break
        if writing:
            token = model(mx.array([[token]]), cache=cache)[0, -1].argmax().item()
        else:
            with read_only(model):
                token = model(mx.array([[token]]), cache=cache)[0, -1].argmax().item()
    return tokenizer.decode(ids, skip_special_tokens=True)


def expected(question: Question, condition: str, name: str, writes: bool, other: Question | None = None) -> str:
    """The reply under a condition, in the plainest way."""
    model, tokenizer = loaded(name)
    template, kind = ChatTemplate(tokenizer, enable_thinking=False), CONDITIONS[condition]
    cache = make_prompt_cache(model)
    if condition in ("state", "replay", "shuffled"):
        history = template.whole((other or question).history)
        prefill(model, cache, history, True, want_logits=False)
        states = cache[-1].cache
        cache = make_prompt_cache(model)
        cache[-1].cache = states
    prompt = template.whole(question.messages(kind.text), generation_prompt=True)
    writing = writes if kind.writes is None else kind.writes
    if condition == "full" and not question.context and name.startswith("qwen3_ssw"):
        # Means of messages are written in two passes: the history, then the question.
        count = len(template.whole(question.history).ids)
        prefill(model, cache, Segments(*(part[:count] for part in vars(prompt).values())), True, want_logits=False)
        prompt = Segments(*(part[count:] for part in vars(prompt).values()))
    return plain_reply(model, tokenizer, cache, prompt, writing, question)


@pytest.mark.slow
@every_adapter
@pytest.mark.parametrize(
    ("condition", "writes", "in_prompt"),
    [
        *((name, False, in_prompt) for name in ("base", "full", "replay") for in_prompt in (False, True)),
        *((name, writes, False) for name in ("state", "none") for writes in (False, True)),
    ],
)
def test_a_condition_is_what_it_says(name, condition, writes, in_prompt):
    asked = questions(in_prompt=in_prompt)
    found = replies(asked, condition, name, write=WRITE[writes], prefill_step_size=9)
    assert found == [expected(question, condition, name, writes) for question in asked]


@pytest.mark.slow
@every_adapter
def test_shuffled_has_the_memory_of_another_history(name):
    asked = questions()
    by_group = {question.group: question for question in asked}
    partners = partner_groups(list(by_group), 0)
    found = replies(asked, "shuffled", name)
    assert found == [expected(each, "shuffled", name, False, by_group[partners[each.group]]) for each in asked]
    assert found != replies(asked, "state", name)


@pytest.mark.slow
def test_base_is_the_frozen_model():
    asked = questions(max_tokens=12)
    model, tokenizer = load(backbone(), adapter=adapter())
    detach(model)
    template = ChatTemplate(tokenizer, enable_thinking=False)
    found = []
    for question in asked:
        ids = template.whole(question.messages(True), generation_prompt=True).ids
        cache, feed, reply = make_prompt_cache(model), mx.array([ids]), []
        for _ in range(question.max_tokens):
            token = model(feed, cache=cache)[0, -1].argmax().item()
            if token in tokenizer.eos_token_ids:
                break
            reply.append(token)
            feed = mx.array([[token]])
        found.append(tokenizer.decode(reply, skip_special_tokens=True))
    assert replies(asked, "base") == found


@pytest.mark.slow
@every_adapter
@pytest.mark.parametrize("writes", [False, True])
def test_zeroed_equals_none(name, writes):
    asked = questions(3, 2)
    assert replies(asked, "zeroed", name, write=WRITE[writes]) == replies(asked, "none", name, write=WRITE[writes])


@pytest.mark.slow
@every_adapter
def test_the_memory_makes_a_difference(name):
    asked = questions(3, 2)
    assert replies(asked, "state", name) != replies(asked, "none", name)
    assert replies(asked, "full", name) != replies(asked, "base", name)
    assert replies(asked, "replay", name) != replies(asked, "base", name)


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("in_prompt", [False, True], ids=["messages", "prompt"])
def test_a_batch_equals_single_questions(condition, in_prompt):
    asked = questions(4, 3, in_prompt)
    sampling = Sampling(temp=1.5, top_p=0.95, top_k=40)
    for options in ({}, {"write": "all"}, {"sampling": sampling}):
        # Batches that mix groups, and a last one that is not full.
        assert replies(asked, condition, batch=5, **options) == replies(asked, condition, **options)


@pytest.mark.slow
@settings(max_examples=8)
@given(st.permutations(range(8)), st.integers(1, 8), st.sampled_from(("base", "full", "replay", "state", "none")))
def test_any_order_and_any_subset_give_the_same_replies(order, count, condition):
    asked = questions(4, 2)
    alone = {each.id: reply for each, reply in zip(asked, replies(asked, condition, write="all"), strict=True)}
    some = [asked[index] for index in order[:count]]
    assert replies(some, condition, write="all") == [alone[each.id] for each in some]
    assert replies(some, condition, write="all", batch=3) == [alone[each.id] for each in some]


@pytest.mark.slow
@every_adapter
@pytest.mark.parametrize("condition", ["chat", "chat-30"])
@pytest.mark.parametrize("write", ["all", "after", "user"])
def test_a_chat_is_a_chat(name, condition, write):
    """A user types each message of the history, the model replies to each, and the user asks the question."""
    model, tokenizer = loaded(name)
    asked = [replace(question, given_replies=(1,)) if at == 1 else question for at, question in enumerate(questions())]
    one = asker(asked, name, Manner(write=write, reply_tokens=5))
    found, measures = one.ask([Job(question, 0) for question in asked], find_condition(condition))
    for question, reply in zip(asked, found, strict=True):
        history = "none" if condition == "chat" else 30
        system = question.history[0]["content"] if question.system else None
        chat = ChatSession(model, tokenizer, system, history, write)
        told = question.history[len(question.system) :]
        for place, message in enumerate(told):
            if message["role"] == "user":
                chat.send(message["content"], 5)
            elif question.given_replies and place + len(question.system) in question.given_replies:
                chat.edit(-1, message["content"])
        assert reply.text == chat.send(question.question, question.max_tokens)
        assert reply.tokens >= len(chat.turns[-1].reply_ids)
    assert measures.prompts == len(asked) and measures.norm > 0 and measures.asked_seconds > 0
    # It has no speed of reading or of generating.
    assert not measures.prompt_seconds and not measures.reply_seconds


def test_conditions_by_name():
    found = parse_conditions(("state", "chat-256", "chat", "state"))
    assert [(condition.name, condition.chat) for condition in found] == [
        ("state", None),
        ("chat-256", 256),
        ("chat", "none"),
    ]
    for name in ("chat-0", "chat-", "chat-x", "chat-01", "chats"):
        with pytest.raises(ValueError, match=f"there is no condition {name}, text; expected base, full, .* or chat-N"):
            parse_conditions(("state", name, "text"))


@pytest.mark.slow
def test_conditions_one_after_the_other_do_not_meet():
    asked = questions()
    one = asker(asked)
    names = ("state", "full", "none", "shuffled", "base", "zeroed", "replay", "full", "base", "replay")
    alone = {
        name: dict(zip([each.id for each in asked], replies(asked, name), strict=True)) for name in dict.fromkeys(names)
    }
    for name in names:
        found, _ = one.ask([Job(question, 0) for question in asked], CONDITIONS[name])
        assert [reply.text for reply in found] == [alone[name][question.id] for question in asked]
        # The next condition then begins with the history that this one ended with.
        asked = asked[::-1]


def test_histories_and_shared_text_are_run_once(monkeypatch):
    asked = questions(3, 3, in_prompt=True)
    lengths = []
    for module, function in (("beginnings", prefill), ("histories", write_text)):
        monkeypatch.setattr(
            f"mlx_deltamem.evaluation.{module}.{function.__name__}",
            lambda model, memory, segments, *rest, function=function, **options: (
                lengths.append(len(segments.ids)) or function(model, memory, segments, *rest, **options)
            ),
        )
    one = asker(asked)
    for condition in ("state", "zeroed", "shuffled"):
        one.ask([Job(question, 0) for question in asked], CONDITIONS[condition])
    assert len(lengths) == 3
    one.ask([Job(question, 0) for question in asked], CONDITIONS["full"])
    assert len(lengths) == 6


@pytest.mark.slow
def test_a_history_longer_than_the_window_is_read_through_one():
    asked = questions(2, 1)
    whole = replies(asked, "state", history_tokens=10_000)
    assert whole == replies(asked, "state")
    one = asker(asked, manner=Manner(history_tokens=8))
    found, _ = one.ask([Job(asked[1], 0)], CONDITIONS["state"])
    assert one._histories._written["group 1"].states[0].shape == (1, 1, 8, 8)
    states = [asker(asked, manner=Manner(history_tokens=count)) for count in (8, None)]
    for each in states:
        each.ask([Job(asked[1], 0)], CONDITIONS["state"])
    one, other = (each._histories._written["group 1"].states for each in states)
    assert all(not mx.allclose(a, b, atol=1e-4) for a, b in zip(one[1:], other[1:], strict=True))
    assert found[0].tokens > 0


@pytest.mark.slow
def test_questions_without_a_history():
    asked = [replace(question, history=question.history[:1]) for question in questions(2, 2)]
    assert replies(asked, "state") == replies(asked, "none") == replies(asked, "base")
    asked = [replace(question, history=()) for question in questions(2, 2)]
    assert replies(asked, "state") == replies(asked, "none") == replies(asked, "base")


def test_sampling_depends_on_the_seed_and_the_index():
    asked = questions(2, 2, max_tokens=12)
    one = asker(asked, manner=Manner(Sampling(temp=2.0)))
    first, again, other = (
        [reply.text for reply in one.ask([Job(each, seed) for each in asked], CONDITIONS["none"])[0]]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    # These two questions have the same text and different indices.
    assert first[0] != first[2]


def test_stop_texts_end_a_reply():
    asked = questions(1, 1, max_tokens=30)
    (text,) = replies(asked, "none")
    stop = text[5:7]
    assert replies(asked, "none", stop=(stop,)) == [text[: text.index(stop)]]


def test_what_is_measured():
    asked = questions(2, 2)
    model, _ = loaded()
    one = asker(asked)
    jobs = [Job(question, 0) for question in asked]
    _, none = one.ask(jobs, CONDITIONS["none"])
    assert (none.norm, none.correction, none.written) == (0.0, 0.0, 0)
    found, state = one.ask(jobs, CONDITIONS["state"])
    assert state.reply_tokens == sum(reply.tokens for reply in found)
    assert state.correction > 0 and state.corrected == none.corrected
    cache = make_prompt_cache(model)
    history = ChatTemplate(loaded()[1], enable_thinking=False).whole(asked[0].history)
    prefill(model, cache, history, True, want_logits=False)
    norms = [np.linalg.norm(np.array(each)) for each in memory(cache).values()]
    _, alone = one.ask(jobs[:1], CONDITIONS["state"])
    assert alone.norm == pytest.approx(np.mean(norms), rel=1e-4)
    assert alone.written == 3 * len(history.ids)
    assert 0 < alone.write / alone.written < 1
    assert state.prompt_tokens > alone.prompt_tokens > 0
    assert state.beyond_window == 0


def test_prompts_beyond_the_window_are_counted(monkeypatch):
    asked = questions(2, 2)
    template = ChatTemplate(loaded()[1], enable_thinking=False)
    lengths = [len(template.whole(question.messages(True), generation_prompt=True).ids) for question in asked]
    monkeypatch.setattr("mlx_deltamem.evaluation.asking.window", lambda model: sorted(lengths)[1])
    _, measures = asker(asked).ask([Job(question, 0) for question in asked], CONDITIONS["base"])
    assert measures.beyond_window == 2


@given(st.integers(2, 40), st.integers(0, 5))
def test_every_group_gets_the_memory_of_another_one(count, seed):
    groups = [f"group {number}" for number in range(count)]
    partners = partner_groups(groups, seed)
    assert set(partners) == set(groups) and set(partners.values()) <= set(groups)
    assert all(one != other for one, other in partners.items())
    # Later groups have no influence.
    assert all(partner_groups([*groups, *more], seed).items() >= partners.items() for more in (["a"], ["a", "b"]))


def test_the_seed_decides_whose_memory_it_is():
    groups = [f"group {number}" for number in range(40)]
    assert partner_groups(groups, 0) == partner_groups(groups, 0) != partner_groups(groups, 1)
    assert len(set(partner_groups(groups, 0).values())) > 10


def test_there_must_be_another_history():
    with pytest.raises(ValueError, match=r"shuffled needs the memory of another history.*; ask more questions, or"):
        partner_groups(["one"], 0)
