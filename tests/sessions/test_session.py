from contextlib import closing
from itertools import pairwise

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from mlx_deltamem import ChatSession, load, read_only
from mlx_deltamem.core.spread import Spread
from mlx_deltamem.ranks.world import World
from mlx_deltamem.sessions.replies.replying import end_reply
from mlx_deltamem.sessions.turns.turn import segments_of
from tests.conftest import adapter, backbone, distance, golden, golden_names

KINDS = ["qwen3_tsw_qo", "qwen3_ssw_msg", "qwen3_ssw_sent", "qwen3_msw4"]
HISTORIES = ["full", "none", 20]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_history = pytest.mark.parametrize("history", HISTORIES)


_LOADED: dict[str, tuple] = {}


def loaded(kind: str = "qwen3_tsw_qo") -> tuple:
    """The golden model with an adapter of that kind, and its tokenizer."""
    if kind not in _LOADED:
        _LOADED[kind] = load(backbone(), adapter=adapter(kind))
    return _LOADED[kind]


def new_chat(kind: str = "qwen3_tsw_qo", history: str | int = "full", system: str | None = "Be brief.") -> ChatSession:
    return ChatSession(*loaded(kind), system=system, history=history)


def told(kind: str = "qwen3_tsw_qo", history: str | int = "full", *texts: str) -> ChatSession:
    chat = new_chat(kind, history)
    for text in texts or ("Hello there. How are you?", "My word is jade!"):
        chat.send(text, 10)
    return chat


def same_memory(one: ChatSession, other: ChatSession, tolerance: float = 1e-6) -> bool:
    return all(distance(state, other.memory[layer]) <= tolerance for layer, state in one.memory.items())


@pytest.mark.parametrize("step", [2048, 7, 1])
@pytest.mark.parametrize("name", golden_names("sessions"))
def test_golden_chat(name, step):
    """Tokens, spans and states after every turn, whatever the prefill step."""
    info, data = golden("sessions", name)
    model, tokenizer = load(backbone(info["backbone"]), adapter=adapter(info["adapter"]))
    chat = ChatSession(model, tokenizer, system=info["system"])
    for number, turn in enumerate(info["turns"]):
        edit = info["edit"]
        if edit and edit["before_turn"] == number:
            chat.edit(edit["message_index"], edit["content"])
        known = len(chat.segments.ids)
        reply = chat.send(
            turn["user"], info["max_new_tokens"], read_only=not turn["write_enabled"], prefill_step_size=step
        )
        assert reply == turn["assistant"]
        assert chat.segments.ids == turn["full_ids_after_turn"]
        if not turn["prompt_ingest"]["rebuilt"]:
            check_spans(chat, known, turn, info["adapter"])
        for key, state in data.items():
            if key.startswith(f"turn{number}.state."):
                expected = state if state.ndim == 4 else state[:, None]
                assert distance(chat.memory[int(key.rsplit(".", 1)[1])], expected) <= 2e-5
    assert chat.messages == info["final"]["messages"]


def check_spans(chat: ChatSession, known: int, turn: dict, kind: str) -> None:
    """Compare the spans of a turn's tokens with those of the golden forward passes."""
    fields = ["message_ids"] + (["sentence_ids"] if kind == "qwen3_ssw_sent" else [])
    for field in fields:
        expected = [index for forward in turn["forwards"] for index in forward[field]]
        found = getattr(chat.segments, field)[known:]
        if field == "message_ids":
            assert found == expected
        else:
            # Only the order of sentence ids matters, not where a chat counts from.
            assert [b > a for a, b in pairwise(found)] == [b > a for a, b in pairwise(expected)]


@pytest.mark.slow
@every_kind
@every_history
def test_undo_is_as_if_the_turns_had_never_been(kind, history):
    chat = told(kind, history, "One.", "Two words.", "And three!")
    assert chat.undo() == "And three!"
    assert chat.undo() == "Two words."
    never = told(kind, history, "One.")
    assert chat.messages == never.messages
    assert same_memory(chat, never)
    assert chat.send("Go on.", 10) == never.send("Go on.", 10)
    assert same_memory(chat, never)


@every_history
def test_undo_of_everything(history):
    chat = told("qwen3_tsw_qo", history)
    chat.undo()
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert not any(state.any() for state in chat.memory.values())
    assert chat.send("Hello there. How are you?", 10) == told("qwen3_tsw_qo", history).messages[2]["content"]


@pytest.mark.slow
@every_kind
@every_history
def test_regenerating_greedily_gives_the_same_and_runs_the_reply_only(kind, history, forwarded):
    chat = told(kind, history)
    before, memory = chat.messages, chat.memory
    del forwarded[:]
    chat.regenerate(10)
    assert chat.messages == before
    assert all(distance(state, memory[layer]) <= 1e-6 for layer, state in chat.memory.items())
    turn = chat._state.turns[-1]
    # The end-of-turn token may run twice: as the end of the reply, and as the beginning of the ending. If it cannot be
    # taken back, the reply runs again.
    assert sum(forwarded) <= 2 * len(turn.reply_ids) + len(turn.ending.ids) + 1
    assert max(forwarded) <= max(len(turn.reply_ids), len(turn.ending.ids))


def test_undo_runs_nothing(forwarded):
    for history in ("full", "none"):
        chat = told("qwen3_tsw_qo", history)
        del forwarded[:]
        chat.undo()
        assert chat.memory
        assert forwarded == []


def test_an_edited_reply_runs_what_follows_from_it(forwarded):
    chat = told("qwen3_tsw_qo", "full", "One.", "Two.", "Three.")
    last = chat._state.turns[-1]
    del forwarded[:]
    chat.edit(-1, "no")
    assert sum(forwarded) == len(chat._state.turns[-1].reply_ids) + len(last.ending.ids)
    del forwarded[:]
    chat.edit(-2, "Four.")
    last = chat._state.turns[-1]
    assert sum(forwarded) == len(last.opening.ids) + len(last.reply_ids) + len(last.ending.ids)


@pytest.mark.slow
@every_kind
@every_history
@pytest.mark.parametrize("index", range(5))
def test_an_edit_is_as_if_it_had_been_said(kind, history, index):
    """The chat equals one in which the same was said, and each reply was edited as it came."""
    chat = told(kind, history)
    chat.edit(index, "Something else. Really?")
    messages = chat.messages
    other = ChatSession(*loaded(kind), system=messages[0]["content"], history=history)
    for user, reply in ((1, 2), (3, 4)):
        other.send(messages[user]["content"], 10)
        if index == reply or other.messages[-1] != messages[reply]:
            other.edit(-1, messages[reply]["content"])
    assert other.messages == messages
    assert messages[index]["content"] == "Something else. Really?"
    if other.segments.ids == chat.segments.ids:
        assert same_memory(chat, other, 1e-5)
        assert chat.send("Go on.", 10) == other.send("Go on.", 10)


def test_the_system_prompt_of_an_empty_chat():
    chat = new_chat(system="Old.")
    chat.edit(0, "New.")
    assert chat.messages == [{"role": "system", "content": "New."}]
    assert chat.send("Hello", 5) == new_chat(system="New.").send("Hello", 5)


@pytest.mark.slow
@every_kind
@every_history
def test_a_fork_goes_its_own_way(kind, history):
    chat = told(kind, history)
    other = chat.fork()
    memory = chat.memory
    other.send("Elsewhere.", 10)
    other.edit(1, "Changed.")
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())
    untouched = told(kind, history)
    assert chat.send("Here.", 10) == untouched.send("Here.", 10)
    assert chat.messages == untouched.messages


def test_memory_and_messages_are_copies():
    chat = told()
    memory, messages = chat.memory, chat.messages
    memory[0][...] = 7.0
    messages[1]["content"] = "x"
    messages.clear()
    assert same_memory(chat, told())
    assert chat.messages == told().messages


def test_the_line_of_a_chat_says_its_size_and_no_text():
    chat = ChatSession(*loaded(), system="Secret.", history=20, write="user")
    assert repr(chat) == "<ChatSession: turns 0, history 20, written user, memory empty>"
    chat.title = chat.conversation = "Secret"
    chat.send("Secret!", 3)
    assert repr(chat) == "<ChatSession: turns 1, history 20, written user, memory held>"
    chat.undo()
    chat.send("Secret!", 3, write="none")
    assert repr(chat) == "<ChatSession: turns 1, history 20, written user, memory empty>"


def test_reset_keeps_the_system_prompt():
    chat = told()
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.send("Hello there. How are you?", 10) == told().messages[2]["content"]


@pytest.mark.slow
@every_kind
def test_how_much_text_the_cache_holds(kind):
    full, none, some = (told(kind, history, "One is jade.", "Two.", "Three.") for history in HISTORIES)
    system = next(i for i, index in enumerate(full.segments.message_ids) if index >= 0)
    held = [chat._state.cache[0].size() for chat in (full, none, some)]
    last, last_of_some = none._state.turns[-1], some._state.turns[-1]
    assert held[0] == len(full.segments.ids)
    assert held[1] == system + len(segments_of([last]).ids)
    assert held[2] == system + 20 + len(segments_of([last_of_some]).ids)
    assert all(state.any() for chat in (none, some) for state in chat.memory.values())


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8, 2048])
def test_a_window_of_tokens_does_not_depend_on_the_prefill_step(step):
    chats = [new_chat(history=12), new_chat(history=12)]
    long = "A message that is a good deal longer than the window, so that it fills it more than once."
    for chat, size in zip(chats, (step, 1), strict=True):
        for text in (long, "Short."):
            chat.send(text, 6, prefill_step_size=size)
    assert chats[0].messages == chats[1].messages
    assert same_memory(*chats, 2e-5)


def test_a_number_of_tokens_that_holds_everything_is_full_history_where_nothing_is_written():
    """If turns are written, it is not: the text is then read again with another memory."""
    chats = [ChatSession(*loaded(), system="Be brief.", history=history, write="none") for history in ("full", 4000)]
    replies = [[chat.send(text, 10) for text in ("Hello there. How are you?", "My cat is grey.")] for chat in chats]
    assert replies[0] == replies[1]


@pytest.mark.slow
@every_kind
@every_history
def test_a_reply_that_is_closed_early_ended_there(kind, history):
    chat = new_chat(kind, history)
    with closing(chat.stream("Hello there. How are you?", 30)) as responses:
        tokens = [next(responses).token for _ in range(4)]
    short = new_chat(kind, history)
    short.send("Hello there. How are you?", 4)
    assert chat.segments == short.segments
    assert list(chat._state.turns[-1].reply_ids) == tokens
    assert same_memory(chat, short)
    assert chat.send("Go on.", 10) == short.send("Go on.", 10)


def test_a_loop_that_is_left_ends_the_reply():
    chat = new_chat()
    for number, _ in enumerate(chat.stream("Hello", 30)):
        if number == 2:
            break
    assert len(chat._state.turns[-1].reply_ids) == 3
    assert chat.send("Go on.", 3) is not None


def test_stop_texts():
    whole = new_chat().send("Hello there. How are you?", 30)
    stop = whole[5:8]
    chat = new_chat()
    parts = list(chat.stream("Hello there. How are you?", 30, stop=["\x00", stop]))
    expected = whole[: whole.index(stop)]
    assert "".join(part.text for part in parts) == expected == chat.messages[-1]["content"]
    assert parts[-1].finish_reason == "stop"
    assert new_chat().send("Hello there. How are you?", 30, stop=["nowhere at all"]) == whole


def test_stop_texts_hold_back_what_may_become_one():
    whole = new_chat().send("Hello there. How are you?", 12)
    almost = whole[-2:] + "!"
    parts = new_chat().stream("Hello there. How are you?", 12, stop=[almost])
    assert "".join(part.text for part in parts) == whole


def test_reading_only():
    for within in (False, True):
        chat = told()
        before = chat.memory
        if within:
            with read_only(chat.model):
                chat.send("Not written.", 6)
        else:
            chat.send("Not written.", 6, read_only=True)
        assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())
        assert set(chat.drift[-1].kept.values()) == {1.0}
        chat.regenerate(6)
        assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


def test_sampling_and_processors_are_mlx_lms():
    def send(seed: int) -> str:
        mx.random.seed(seed)
        seen = []
        chat = new_chat()
        reply = chat.send(
            "Hello",
            8,
            sampler=make_sampler(temp=1.0),
            logits_processors=[lambda tokens, logits: seen.append(tokens.size) or logits],
        )
        assert seen[0] == len(chat._state.turns[0].opening.ids)
        return reply

    assert send(1) == send(1) != send(2)


def test_responses_are_mlx_lms():
    chat = new_chat()
    responses = list(chat.stream("Hello", 5))
    assert "".join(response.text for response in responses) == chat.messages[-1]["content"]
    assert responses[-1].finish_reason in ("length", "stop")
    assert responses[-1].prompt_tokens == len(chat._state.turns[0].opening.ids)
    assert responses[-1].prompt_tps > 0


def test_progress_of_a_long_message():
    seen = []
    new_chat().send(
        "A message of some length", 2, prefill_step_size=10, prompt_progress_callback=lambda *x: seen.append(x)
    )
    total = seen[-1][1]
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.slow
@every_history
@pytest.mark.parametrize("where", ["message", "reply"])
def test_an_error_leaves_the_chat_as_it_was(history, where, monkeypatch):
    chat = told("qwen3_tsw_qo", history)
    messages, memory = chat.messages, chat.memory
    calls = 0
    original = type(chat.model).__call__

    def failing(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == (1 if where == "message" else 4):
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(chat.model), "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        chat.send("This goes wrong.", 10)
    monkeypatch.undo()
    assert chat.messages == messages
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())
    fine = told("qwen3_tsw_qo", history)
    assert chat.send("Go on.", 10) == fine.send("Go on.", 10)
    assert same_memory(chat, fine, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["regenerate", "edit", "undo_edit"])
def test_an_error_while_changing_leaves_the_chat_as_it_was(call, monkeypatch):
    chat = told()
    messages, memory = chat.messages, chat.memory
    original = type(chat.model).__call__
    monkeypatch.setattr(type(chat.model), "__call__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        {
            "regenerate": lambda: chat.regenerate(5),
            "edit": lambda: chat.edit(1, "x"),
            "undo_edit": lambda: chat.edit(0, "y"),
        }[call]()
    monkeypatch.setattr(type(chat.model), "__call__", original)
    assert chat.messages == messages
    assert all(distance(state, memory[layer]) <= 1e-6 for layer, state in chat.memory.items())
    assert chat.send("Go on.", 10) == told().send("Go on.", 10)


def test_bad_calls_say_what_is_wrong():
    chat = told()
    before = chat.messages
    for call, message in (
        (lambda: chat.send(""), "the message is empty"),
        (lambda: chat.send(" \n"), "the message is empty"),
        (lambda: chat.edit(9, "x"), "there is no message 9; the chat has 5"),
        (lambda: chat.edit(1, ""), "the message is empty"),
        (lambda: new_chat().undo(), "there is no turn to take back"),
        (lambda: new_chat().regenerate(), "there is no turn to regenerate"),
        (lambda: new_chat(history=0), "history is 0; expected 'full', 'none' or a number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert chat.messages == before


def test_a_message_longer_than_the_window(monkeypatch):
    chat = told()
    monkeypatch.setattr(chat.model.args, "max_position_embeddings", 130)
    before = chat.messages
    with pytest.raises(ValueError, match="the model's window is 130"):
        chat.send("A long message " * 20)
    assert chat.messages == before
    monkeypatch.undo()
    assert chat.send("Go on.", 4) == told().send("Go on.", 4)


def test_one_reply_at_a_time():
    chat = new_chat()
    responses = chat.stream("Hello", 10)
    next(responses)
    for call in (lambda: chat.send("x"), chat.undo, chat.regenerate, chat.fork, chat.reset, lambda: chat.edit(0, "x")):
        with pytest.raises(ValueError, match="a reply is under way"):
            call()
    responses.close()
    stale = chat.stream("Late.", 4)
    chat.send("First.", 4)
    with pytest.raises(ValueError, match="the chat has gone on since"):
        next(stale)


def test_a_frozen_model_is_refused():
    model, tokenizer = load(backbone())
    with pytest.raises(ValueError, match="the model has no adapter"):
        ChatSession(model, tokenizer)


def test_one_model_serves_two_chats():
    one, two = new_chat(), new_chat(system=None)
    for text in ("Hello there. How are you?", "My word is jade!"):
        one.send(text, 10)
        two.send(text, 10)
    assert one.messages == told().messages


def test_drift():
    chat = told()
    drift = chat.drift[0]
    assert drift.kept.keys() == drift.changed.keys() == chat.memory.keys()
    assert all(0 < kept < 1 for kept in drift.kept.values())
    assert all(changed == pytest.approx(1.0) for changed in drift.changed.values())
    assert all(0 < tokens < 50 for tokens in drift.half_life.values())


def test_an_end_token_that_is_not_the_templates_is_taken_back():
    """If another token than the template's ends a reply, the chat is as if that token had not run."""
    model, tokenizer = load(backbone(), adapter=adapter())
    expected = new_chat()
    expected.send("Hello there. How are you?", 3)
    fourth = new_chat()
    fourth.send("Hello there. How are you?", 4)
    end = fourth._state.turns[0].reply_ids[3]
    tokenizer.add_eos_token(str(end))
    for history in ("full", "none", 4000):
        chat = ChatSession(model, tokenizer, system="Be brief.", history=history)
        chat.send("Hello there. How are you?", 9)
        assert chat.segments == expected.segments
        assert same_memory(chat, expected, 2e-5)


@pytest.mark.slow
def test_many_conversations_of_a_file_do_not_run_again(tmp_path, forwarded):
    """A file keeps the memory before some turns only. The turns of other conversations are not needed for a new one."""
    chat = new_chat()
    for number in range(60):
        chat.conversation = f"c{number}"
        chat.read_exchange(f"Number {number} is mine.", "Good.")
    chat.conversation = "c3"
    chat.read_exchange("And what is it?", "Three.")
    chat.save(tmp_path / "chat.safetensors")
    loaded_one = ChatSession.load(chat.model, chat.tokenizer, tmp_path / "chat.safetensors")
    assert any(turn.before is None for turn in loaded_one.turns[1:])
    everything = sum(turn.length for turn in chat.turns)
    for conversation in ("new", "c3"):
        replies = []
        for each in (chat, loaded_one):
            each.conversation = conversation
            forwarded.clear()
            replies.append(each.send("Which one?", 4))
        # Nothing runs for a new conversation; for an old one, each turn runs once at most.
        assert sum(forwarded) <= chat.turns[-1].length + (0 if conversation == "new" else everything)
        assert replies[0] == replies[1]
        assert chat.messages == loaded_one.messages
        # Text that runs again is summed in another order.
        assert same_memory(chat, loaded_one, 1e-5)
    for each in (chat, loaded_one):
        each.undo()
        each.undo()
    assert same_memory(chat, loaded_one, 0)


def test_a_reply_that_is_ended_is_one_that_is_closed():
    closed, ended = new_chat(), new_chat()
    for chat, end in ((closed, lambda responses: responses.close()), (ended, end_reply)):
        responses = chat.stream("Hello", 10)
        for _ in range(3):
            next(responses)
        end(responses)
    assert closed.messages == ended.messages and len(ended.messages) == 3
    assert same_memory(closed, ended, 0)
    assert closed.send("Go on.", 4) == ended.send("Go on.", 4)


@pytest.mark.parametrize("again", [False, True])
def test_a_rank_that_leaves_a_reply_alone_does_not_run_the_model(forwarded, again, monkeypatch):
    """The other ranks go on with the reply. An operation of this rank would wait for them for good."""
    chat = told()
    monkeypatch.setattr(loaded()[0], "spread", Spread(World(0, 2), ""), raising=False)
    before, turns = chat.memory, len(chat.turns)
    responses = chat.stream_regenerate(max_tokens=10) if again else chat.stream("Hello", 10)
    for _ in range(3):
        next(responses)
    calls = len(forwarded)
    responses.close()
    assert len(forwarded) == calls
    assert len(chat.turns) == turns
    assert all(distance(state, chat.memory[layer]) == 0 for layer, state in before.items())
