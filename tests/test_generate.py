import json
import math
import shlex
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext

import mlx.core as mx
import pytest
from mlx_lm import stream_generate

from mlx_deltamem import ChatSession, load, load_adapter, make_prompt_cache, memory, save_adapter
from mlx_deltamem.cli.opening import load_spread_model, open_chat, reply_options
from mlx_deltamem.commands import generate as commands_generate
from mlx_deltamem.core.adapter import WEIGHTS_FILE
from mlx_deltamem.generate import main, setup_arg_parser
from mlx_deltamem.sessions.reading import prefill
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone, distance, golden

MODEL = ("--model", backbone(), "--adapter", adapter())


def generate(*arguments: object, **options: str):
    return run_command("generate", *arguments, **options)


def replies(*arguments: object, stdin: str = "") -> str:
    result = generate(*MODEL, "--max-tokens", 12, "--verbose", "False", *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_golden_chat():
    info, _ = golden("sessions", "token")
    prompts = [argument for turn in info["turns"] for argument in ("--prompt", turn["user"])]
    assert replies(*prompts) == "".join(f"{turn['assistant']}\n" for turn in info["turns"])


@pytest.mark.slow
def test_a_golden_chat_over_three_processes(tmp_path):
    info, _ = golden("sessions", "token")
    session = tmp_path / "chat.safetensors"
    for turn in info["turns"]:
        assert replies("--session", session, "--prompt", turn["user"]) == f"{turn['assistant']}\n"
    assert stat.S_IMODE(session.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["chat.safetensors"]


def opened(session: object, config: dict[str, object]) -> ChatSession:
    """The chat that the command opens with such options of the chat template."""
    args = setup_arg_parser().parse_args(
        [*MODEL, "--session", str(session), "--chat-template-config", json.dumps(config)]
    )
    return open_chat(*load_spread_model(args), args)


def test_a_chat_with_a_template_of_its_own_goes_on(tmp_path):
    session = tmp_path / "chat.safetensors"
    template = load(*MODEL[1::2])[1].chat_template
    config = {"chat_template": template.replace("assistant", "helper"), "enable_thinking": True}
    chat = opened(session, config)
    chat.send("Hello", 2)
    chat.save(session)
    again = opened(session, config)
    again.send("What is it?", 2)
    chat.send("What is it?", 2)
    assert again.messages == chat.messages
    text = again.tokenizer.decode(again.segments.ids)
    assert text.count("<|im_start|>helper") == 2 and "assistant" not in text
    with pytest.raises(ValueError, match="was made with another tokenizer"):
        opened(session, {"enable_thinking": True})


@pytest.mark.slow
def test_what_is_printed():
    result = generate(*MODEL, "--prompt", "Hello", "--max-tokens", "5")
    lines = result.stdout.splitlines()
    assert lines[0] == "=" * 10
    assert lines[-5] == "=" * 10
    assert [line.split(":")[0] for line in lines[-4:]] == ["Prompt", "Generation", "Peak memory", "Memory"]
    assert lines[-1].startswith("Memory: 3 layers of 1x8x8, 768 bytes, norm ")
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("plain", [(), ("--ignore-chat-template",)])
def test_a_draft_model_changes_no_reply(plain):
    prompts = ("--prompt", "My name is Anna.", "--prompt", "Hello", *plain)
    assert replies(*prompts, "--draft-model", backbone(), "--num-draft-tokens", "2") == replies(*prompts)


@pytest.mark.slow
def test_draft_models_that_do_not_fit_are_refused(tmp_path):
    for options, message in (
        (("--draft-model", backbone(), "--kv-bits", "8"), "--draft-model does not go with --kv-bits"),
        (("--draft-model", str(tmp_path / "none")), "none"),
    ):
        assert_refused(generate(*MODEL, "--prompt", "Hello", *options), message)


@pytest.mark.slow
def test_options_without_an_effect_are_refused():
    template = ("--chat-template-config", '{"enable_thinking": false}')
    for options, message in (
        (("--save-kv",), "--save-kv is for a --session FILE"),
        ((*template, "--ignore-chat-template"), "--chat-template-config does not go with --ignore-chat-template"),
    ):
        assert_refused(generate(*MODEL, "--prompt", "Hello", *options), message)


@pytest.mark.slow
def test_a_template_of_the_options_makes_a_chat(tmp_path):
    """Also where the tokenizer has none."""
    model = shutil.copytree(backbone(), tmp_path / "plain")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template", None) or (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    places = ("--model", model, "--adapter", adapter(), "--prompt", "Hello", "--max-tokens", "4", "--verbose", "False")
    given = ("--chat-template-config", json.dumps({"chat_template": template}))
    with_template, plain = generate(*places, *given), generate(*places)
    assert with_template.returncode == plain.returncode == 0, with_template.stderr
    assert with_template.stdout.strip() == replies("--prompt", "Hello", "--max-tokens", "4").strip()
    assert with_template.stdout != plain.stdout


@pytest.mark.slow
def test_the_prompt_from_standard_input():
    assert replies("--prompt", "-", stdin="What is my code word?") == replies("--prompt", "What is my code word?")


@pytest.mark.slow
def test_sampling_follows_the_seed():
    one, same, other = (replies("--prompt", "Hello", "--temp", "1.0", "--seed", seed) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.slow
def test_reading_only_leaves_the_memory_empty():
    result = generate(*MODEL, "--prompt", "Hello", "--read-only", "--max-tokens", "4")
    assert "norm 0.000 to 0.000" in result.stdout


@pytest.mark.slow
def test_reading_only_plain_text_leaves_the_memory_empty():
    result = generate(*MODEL, "--prompt", "Hello", "--read-only", "--ignore-chat-template", "--max-tokens", "4")
    assert "norm 0.000 to 0.000" in result.stdout


@pytest.mark.slow
def test_what_is_for_chats_is_refused_without_one():
    for option in (["--history", "none"], ["--system-prompt", "x"]):
        result = generate(*MODEL, "--prompt", "Hello", "--ignore-chat-template", *option)
        assert_refused(result, f"{option[0]} is for chats")


@pytest.mark.slow
def test_mlx_lms_options_are_taken():
    options = ["--prefill-step-size", 3, "--top-p", 0.9, "--min-p", 0.1, "--top-k", 5, "--seed", 3, "--temp", 0.5]
    assert replies("--prompt", "A longer prompt, to be read in steps.", "--system-prompt", "Be kind.", *options)


@pytest.mark.slow
def test_plain_text_without_a_chat():
    plain = replies("--prompt", "Hello", "--ignore-chat-template", "--max-kv-size", 16)
    assert plain != replies("--prompt", "Hello")
    two = replies("--prompt", "Hello", "--prompt", " there", "--ignore-chat-template", "--max-kv-size", 16)
    assert two.startswith(plain)


@pytest.mark.slow
def test_histories():
    prompts = ["--prompt", "My word is jade.", "--prompt", "What is it?"]
    full, none, some = (replies(*prompts, "--history", history) for history in ("full", "none", "3"))
    assert full != none
    assert replies(*prompts) == full
    assert some.splitlines()[0] == replies(*prompts[:2], "--history", "3").splitlines()[0]


@pytest.mark.slow
def test_a_session_goes_on_with_its_own_history(tmp_path):
    session = ["--session", tmp_path / "chat.safetensors"]
    replies("--prompt", "Hello", "--history", "none", *session)
    assert replies("--prompt", "Again", *session)
    assert ChatSession.load(*load(backbone(), adapter=adapter()), session[1]).history == "none"
    assert replies("--prompt", "x", "--history", "full", "--write", "user", *session)
    chat = ChatSession.load(*load(backbone(), adapter=adapter()), session[1])
    assert (chat.history, chat.write, [turn.write for turn in chat.turns]) == ("full", "user", ["all", "all", "user"])
    assert_refused(generate(*MODEL, "--prompt", "x", "--system-prompt", "y", *session), "has --system-prompt None")
    for config in ('{"enable_thinking": true}', '{"other": 1}'):
        refused = generate(*MODEL, "--prompt", "x", "--chat-template-config", config, *session)
        assert_refused(refused, '--chat-template-config {"enable_thinking": false}, not {"')
    assert replies("--prompt", "x", "--chat-template-config", '{"enable_thinking": false}', *session)


@pytest.mark.slow
def test_a_file_that_is_interrupted_goes_on_with_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr(prefill, "_STRETCH", 16)
    notes, session = tmp_path / "notes.txt", tmp_path / "s.safetensors"
    notes.write_text("The key is under the blue pot. The cat is grey, and it sleeps on the stove.")
    model, tokenizer = load(backbone(), adapter=adapter())
    whole = ChatSession(model, tokenizer)
    whole.remember(notes.read_text())
    end = prefill.stretch_ends(model, whole.turns[-1].opening)[1]

    def progress(done: int, _: int) -> None:
        if done > end:
            raise KeyboardInterrupt

    arguments = [*MODEL, "--remember", str(notes), "--session", str(session)]
    monkeypatch.setattr(sys, "argv", ["mlx_deltamem.generate", *arguments])
    with monkeypatch.context() as patched:
        patched.setattr(commands_generate, "reading_progress", lambda *_: nullcontext(progress))
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            main()
    assert [len(turn.opening.ids) for turn in ChatSession.load(model, tokenizer, session).turns] == [end]
    main()
    again = ChatSession.load(model, tokenizer, session)
    assert [turn.opening for turn in again.turns] == [turn.opening for turn in whole.turns]
    assert all(mx.array_equal(state, whole.memory[layer]) for layer, state in again.memory.items())


@pytest.mark.slow
def test_nothing_is_written_before_all_is_checked(tmp_path):
    (tmp_path / "a.txt").write_text("The key is red.")
    (tmp_path / "roles.json").write_text('[{"role": "system", "content": "x"}]')
    session = tmp_path / "s.safetensors"
    remembered = [*MODEL, "--session", session, "--remember", tmp_path / "a.txt"]
    for more, message in (
        (["--remember", tmp_path / "missing.txt"], "missing.txt"),
        (["--remember", tmp_path / "roles.json"], "roles.json: there are only system messages"),
        (["--prompt", "Hello", "--prompt", ""], "the message is empty"),
    ):
        assert_refused(generate(*remembered, *more), message)
        assert not session.exists()


@pytest.mark.slow
def test_several_files_that_are_interrupted_go_on_with_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr(prefill, "_STRETCH", 16)
    texts = {"a.txt": "I like figs.", "b.txt": "The key is under the blue pot. The cat is grey, and it sleeps."}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    model, tokenizer = load(backbone(), adapter=adapter())
    whole = ChatSession(model, tokenizer)
    for text in texts.values():
        whole.remember(text)
    whole.send("Hello", 2)
    end = prefill.stretch_ends(model, whole.turns[1].opening)[1]
    session = tmp_path / "s.safetensors"
    remembered = [part for name in texts for part in ("--remember", str(tmp_path / name))]
    prompts = ["--prompt", "Hello", "--prompt", "Again", "--max-tokens", "2"]
    arguments = ["mlx_deltamem.generate", *MODEL, *remembered, *prompts, "--session", str(session)]
    monkeypatch.setattr(sys, "argv", arguments)

    def turns_after(reads: str, after: int) -> list[int]:
        """The lengths of the turns when the reading of something is interrupted after some tokens."""

        def progress(name: str, _: bool):
            def goes_on(done: int, __: int) -> None:
                if reads in name and done > after:
                    raise KeyboardInterrupt

            return nullcontext(goes_on)

        with monkeypatch.context() as patched:
            patched.setattr(commands_generate, "reading_progress", progress)
            with pytest.raises((SystemExit, KeyboardInterrupt)):
                main()
        return [len(turn.opening.ids) for turn in ChatSession.load(model, tokenizer, session).turns]

    lengths = [len(turn.opening.ids) for turn in whole.turns]
    # Before the second file has a part that can be kept; after such a part; and within each prompt.
    assert turns_after("b.txt", -1) == lengths[:1]
    assert turns_after("b.txt", end) == [lengths[0], end]
    assert turns_after("prompt", -1) == lengths[:2]
    answered: list[str] = []
    monkeypatch.setattr(commands_generate, "_print_reply", lambda replies, _: answered.append(list(replies)[-1].text))
    main()
    assert len(answered) == 2
    again = ChatSession.load(model, tokenizer, session)
    assert [turn.opening for turn in again.turns[:3]] == [turn.opening for turn in whole.turns]
    for before, after in zip(whole.turns[2].before.states, again.turns[2].before.states, strict=True):
        assert mx.array_equal(before, after)
    # The command has ended: its texts are wanted again.
    main()
    assert [turn.remembered for turn in ChatSession.load(model, tokenizer, session).turns] == [
        True,
        True,
        False,
        False,
    ] * 2


@pytest.mark.slow
def test_files_are_remembered_before_the_first_prompt(tmp_path):
    notes, transcript = tmp_path / "notes.txt", tmp_path / "chat.json"
    notes.write_text("The key is under the blue pot.")
    transcript.write_text('[{"role": "user", "content": "I like figs."}]')
    session = tmp_path / "s.safetensors"
    remembered = ["--remember", notes, "--remember", "-", "--remember", transcript]
    found = replies(*remembered, "--prompt", "Where is the key?", "--session", session, stdin="It rains.")
    model, tokenizer = load(backbone(), adapter=adapter())
    chat = ChatSession(model, tokenizer)
    for text in (notes.read_text(), "It rains.", {"role": "user", "content": "I like figs."}):
        chat.remember(text)
    assert found == chat.send("Where is the key?", 12) + "\n"
    again = ChatSession.load(model, tokenizer, session)
    assert [turn.remembered for turn in again.turns] == [True, True, True, False]
    # The command's process may multiply with another BLAS.
    assert all(distance(state, chat.memory[layer]) <= 1e-5 for layer, state in again.memory.items())
    # Without a prompt, for a session.
    replies("--remember", notes, "--session", session)
    assert len(ChatSession.load(model, tokenizer, session).turns) == 5


@pytest.mark.slow
def test_bad_inputs_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"hello")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "a.txt").write_text("The key is red.")
    cases = [
        (["--adapter", adapter(), "--prompt", "x", "--model", tmp_path / "nothing"], "is not a folder on this machine"),
        (["--model", backbone(), "--prompt", "x", "--adapter", tmp_path / "nothing"], "there is no folder"),
        (["--model", backbone(), "--prompt", "x", "--adapter", tmp_path / "empty"], "is not a δ-mem adapter"),
        (["--model", backbone(), "--prompt", "x", "--adapter", adapter("smollm3_tsw_qkvo")], "the model has 3 layers"),
        (["--model", backbone(), "--prompt", "x"], "needs an --adapter-path made for it"),
        ([*MODEL, "--prompt", "x", "--history", "some"], "expected 'full', 'none' or a number of tokens"),
        ([*MODEL, "--prompt", "x", "--read-only", "--write", "user"], "--read-only writes nothing"),
        ([*MODEL, "--prompt", "x", "--num-draft-tokens", "4"], "--num-draft-tokens goes with --draft-model"),
        ([*MODEL, "--prompt", "x", "--ignore-chat-template", "--write", "all"], "are for chats"),
        ([*MODEL, "--remember", tmp_path / "nothing.txt"], "nothing.txt"),
        ([*MODEL, "--remember", tmp_path / "empty.txt"], "empty.txt is empty; expected a text to remember"),
        ([*MODEL, "--remember", tmp_path / "a.txt", "--read-only"], "--read-only writes nothing, and --remember"),
        ([*MODEL, "--remember", tmp_path / "a.txt", "--write", "none"], "--write none writes nothing, and --remember"),
        ([*MODEL, "--prompt", "", "--ignore-chat-template"], "the prompt has no tokens"),
        ([*MODEL, "--prompt", "x", "--kv-bits", "4", "--kv-group-size", "128"], "a head of the model has 16 numbers"),
        (
            [*MODEL, "--prompt", "x", "--kv-bits", "4", "--max-kv-size", "4", "--ignore-chat-template"],
            "--kv-bits does not go with --max-kv-size",
        ),
        ([*MODEL, "--prompt", "x", "--prefill-response", "word " * 5000], "--prefill-response is more than"),
        (MODEL, "there is no --prompt and no --remember"),
        ([*MODEL, "--prompt", "x", "--max-kv-size", "5"], "--max-kv-size is for --ignore-chat-template"),
        ([*MODEL, "--prompt", "  "], "the message is empty"),
        ([*MODEL, "--prompt", "x", "--session", tmp_path / "chat.txt"], "does not end in .safetensors"),
        ([*MODEL, "--prompt", "x", "--session", tmp_path / "broken.safetensors"], "is not a session"),
        ([*MODEL, "--prompt", "x", "--session", tmp_path / "no" / "folder.safetensors"], "there is no folder"),
    ]
    for arguments, message in cases:
        assert_refused(generate(*arguments, HF_HOME=str(tmp_path / "hf")), message)
    assert (tmp_path / "broken.safetensors").read_bytes() == b"hello"


@pytest.mark.parametrize(
    "option",
    [
        ["--max-tokens", "0"],
        ["--seed", "-1"],
        ["--temp", "-1"],
        ["--top-p", "3"],
        ["--prefill-step-size", "0"],
        ["--chat-template-config", "[1]"],
        ["--chat-template-config", "{"],
        ["--max-kv-size", "-1"],
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_loaded(option, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mlx_deltamem.generate", *MODEL, "--prompt", "x", *option])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_two_names_of_the_adapter():
    model = ("--model", backbone(), "--prompt", "Hello", "--max-tokens", 5, "--verbose", "False")
    one, other = (generate(*model, name, adapter()) for name in ("--adapter", "--adapter-path"))
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert one.stdout == other.stdout


@pytest.mark.slow
def test_a_reply_goes_on_from_a_given_beginning(tmp_path):
    session = tmp_path / "chat.safetensors"
    shown = replies("--prompt", "Hello", "--prefill-response", "Well, the code", "--session", session)
    assert shown.startswith("Well, the code")
    model, tokenizer = load(backbone(), adapter=adapter())
    begin = tokenizer.encode("Well, the code", add_special_tokens=False)
    chat = ChatSession.load(model, tokenizer, session)
    # The given tokens do not count as generated ones, and are part of the reply.
    assert list(chat.turns[0].reply_ids[: len(begin)]) == begin
    assert len(chat.turns[0].reply_ids) <= len(begin) + 12
    # What follows is what the model says after the message and these tokens: the same as when they are read as text.
    prompt = [*chat.turns[0].opening.ids, *begin]
    cache = make_prompt_cache(model)
    expected = [each.token for each in stream_generate(model, tokenizer, prompt, max_tokens=12, prompt_cache=cache)]
    found = list(chat.turns[0].reply_ids[len(begin) :])
    assert found == [token for token in expected if token not in tokenizer.eos_token_ids][: len(found)]
    assert found
    assert_refused(
        generate(*MODEL, "--prompt", "x", "--prefill-response", "y", "--ignore-chat-template"), "is for chats"
    )


def drawn(probabilities: dict[int, float], *options: object) -> set[int]:
    """The tokens that the sampler of a command line draws in 100 tries, from the probabilities of a few tokens."""
    tokenizer = load(backbone(), adapter=adapter())[1]
    args = setup_arg_parser().parse_args(["--prompt", "x", "--temp", "1", "--seed", "0", *map(str, options)])
    sampler = reply_options(tokenizer, args)["sampler"]
    given = mx.full((1, len(tokenizer.get_vocab())), -mx.inf)
    for token, probability in probabilities.items():
        given[0, token] = math.log(probability)
    return {int(sampler(given).item()) for _ in range(100)}


def test_the_options_of_the_sampler_are_those_of_mlx_lm():
    likely = {40: 0.5, 41: 0.3, 42: 0.2}
    assert drawn(likely) == {40, 41, 42}
    # XTC leaves out the likeliest tokens, but for the last one above the threshold.
    assert drawn(likely, "--xtc-probability", 1) == {42}
    assert drawn(likely, "--xtc-probability", 1, "--xtc-threshold", 0.25) == {41, 42}
    assert drawn(likely, "--min-p", 1) == {40}
    assert drawn(likely, "--min-p", 1, "--min-tokens-to-keep", 2) == {40, 41}
    # The end of a reply is never left out.
    (end,) = load(backbone(), adapter=adapter())[1].eos_token_ids
    assert drawn({end: 0.8, 41: 0.2}, "--xtc-probability", 1) == {end, 41}


@pytest.mark.slow
def test_the_seed_and_the_ending_tokens_apply_without_a_chat_too():
    plain = ("--prompt", "Hello", "--ignore-chat-template")
    drawn = [replies(*plain, "--temp", 1, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert_refused(generate(*MODEL, *plain, "--extra-eos-token", "no such token"), "expected a token of the model")


@pytest.mark.slow
def test_a_session_of_another_adapter_is_refused(tmp_path):
    session = tmp_path / "chat.safetensors"
    replies("--prompt", "Hello", "--session", session)
    before = session.read_bytes()
    other = ("--model", backbone(), "--adapter", adapter("qwen3_ssw_msg"))
    assert_refused(generate(*other, "--prompt", "x", "--session", session), "was made with another adapter")
    assert session.read_bytes() == before


@pytest.mark.slow
def test_output_that_nobody_reads_is_no_error():
    command = shlex.join([sys.executable, "-m", "mlx_deltamem", "generate", *MODEL, "--prompt", "x", "-m", "5"])
    result = subprocess.run(["bash", "-c", f"{command} | head -c 0"], capture_output=True, text=True, check=False)
    assert result.stderr == ""


@pytest.mark.slow
def test_a_prompt_that_is_no_text_and_a_closed_standard_input():
    assert_refused(
        generate(*MODEL, "--prompt", b"\xff".decode(errors="surrogateescape")), "the prompt has half a character"
    )
    command = shlex.join([sys.executable, "-m", "mlx_deltamem", "generate", *MODEL, "--prompt", "-"])
    result = subprocess.run(["bash", "-c", f"{command} <&-"], capture_output=True, text=True, check=False)
    assert_refused(result, "standard input is closed")


@pytest.mark.slow
def test_without_the_hub_the_default_says_what_is_missing(tmp_path):
    result = generate("--prompt", "x", HF_HOME=str(tmp_path))
    assert_refused(result, "declare-lab/delta-mem_qwen3_4b-instruct is not a folder on this machine")


@pytest.mark.slow
def test_a_converted_adapter_generates_the_same(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "ours")
    assert (tmp_path / "ours" / WEIGHTS_FILE).is_file()
    result = generate(
        "--model",
        backbone(),
        "--adapter",
        tmp_path / "ours",
        "--prompt",
        "Hi",
        "--max-tokens",
        12,
        "--verbose",
        "False",
    )
    assert result.stdout == replies("--prompt", "Hi")


@pytest.mark.slow
def test_memory_after_a_saved_chat_is_that_of_all_its_tokens(tmp_path):
    session = tmp_path / "chat.safetensors"
    replies("--prompt", "Hello", "--session", session)
    model, tokenizer = load(backbone(), adapter=adapter())
    chat = ChatSession.load(model, tokenizer, session)
    cache = make_prompt_cache(model)
    model(mx.array([chat.segments.ids]), cache=cache)
    for layer, state in memory(cache).items():
        assert distance(chat.memory[layer], state) <= 2e-5
