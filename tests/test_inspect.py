import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import image

from mlx_deltamem import inspect, load_adapter, save_adapter
from mlx_deltamem.inspection.session import session_report
from tests.command_line import error_line, run_command
from tests.conftest import adapter, backbone
from tests.sessions.test_session import new_chat, told

SECRET = "My word is jade!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with chats and texts."""
    folder = tmp_path_factory.mktemp("inspect")
    told().save(folder / "chat.safetensors", save_kv=True)
    told().save(folder / "same.safetensors", save_kv=False)
    told("qwen3_tsw_qo", "none", "Hello there. How are you?", "My word is gold!").save(folder / "other.safetensors")
    told("qwen3_msw4").save(folder / "four.safetensors")
    new_chat().save(folder / "empty.safetensors")
    (folder / "text.txt").write_text("My name is Anna.\n", encoding="utf-8")
    return folder


@pytest.fixture
def inspected(monkeypatch, capsys, folder):
    """A function that runs the command in this process and in the folder, and returns its output."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
        inspect.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def document(inspected):
    return lambda *arguments: json.loads(inspected(*arguments, "--json"))


@pytest.fixture
def refused(inspected, capsys):
    """A function that runs the command, checks that it fails with one line, and returns the line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            inspected(*arguments)
        assert exit_.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        line = error_line(captured.err)
        assert line.startswith("error: ")
        return line

    return run


def words(output: str) -> str:
    return " ".join(output.split())


@pytest.mark.slow
def test_as_a_user_runs_it(folder):
    """In a process, with a matplotlib backend that needs windows and an encoding that lacks most characters."""
    plot = folder / "out.png"
    arguments = (adapter(), "--model", backbone(), "--text", folder / "text.txt", "--plot", plot)
    result = run_command("inspect", *arguments, MPLBACKEND="TkAgg", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"Drew {plot}" in result.stdout
    assert "fits yes: 3 of 3 layers have a memory" in words(result.stdout)


@pytest.mark.slow
def test_nothing_but_a_figure_needs_matplotlib(folder):
    (folder / "matplotlib.py").write_text("raise ImportError('matplotlib is not there')\n")
    try:
        result = run_command("inspect", adapter(), "--json", PYTHONPATH=str(folder))
    finally:
        (folder / "matplotlib.py").unlink()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kind"] == "adapter"


def test_an_adapter(inspected, document):
    shown = words(inspected(adapter("qwen3_tsw_qo")))
    assert "1x8x8 float32 in layers 0-2: 768 bytes a sequence" in shown
    assert "parameters 10,776, of which 1,536 are not in use" in shown
    assert "* delta_heads q, o q, k, v, o" in shown
    assert re.search(r"delta_k_proj 32x8 float32 3 3,072 [\d. to]+ not in use", shown)
    assert "converted_from delta_mem_adapter.pt" in shown
    found = document(adapter("qwen3_tsw_qo"))
    assert (found["kind"], found["parameters"], found["not_default"]) == ("adapter", 10776, ["delta_heads"])
    assert found["tensors"][0].keys() == {
        *("name", "shape", "dtype", "parameters", "bytes", "in_use", "norms", "zero_in"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_tsw_qo", "qwen3_tsw_nonorm_r16", "qwen3_tsw_bf16", "qwen3_ssw_sent"])
def test_a_model_and_a_text(name, inspected, document):
    arguments = (adapter(name), "--model", backbone(), "--text", "text.txt")
    found = document(*arguments)
    assert (found["kind"], found["text"], found["adapter"]["kind"]) == ("model", "text.txt", "adapter")
    trace = found["trace"]
    layers, tokens = len(trace["layers"]), len(trace["tokens"])
    assert "".join(trace["texts"]) == "My name is Anna.\n"
    for gate in ("write", "keep"):
        assert [len(row) for row in trace[gate]] == [tokens] * layers
    assert (trace["correction"] is None) == (name == "qwen3_tsw_bf16")
    assert "states" not in trace
    measured = found["perplexity"]
    assert measured.pop("tokens") == tokens - 1 and measured.keys() == {
        *("frozen", "written", "carried_read", "carried_written"),
    }
    assert all(each > 1 for each in measured.values())
    shown = words(inspected(*arguments))
    assert f"tokens {tokens}" in shown
    assert "measured after every token" in shown
    assert ("written token by token" in shown) == (name == "qwen3_ssw_sent")
    assert f"read by the frozen model {measured['frozen']:.4g} 1" in shown


def test_a_model_without_a_text(inspected, document):
    arguments = (adapter("qwen3_tsw_nonorm_r16"), "--model", backbone())
    found = document(*arguments)
    assert found["trace"] is None and found["perplexity"] is None
    assert found["attached"] == ["model.layers.0.self_attn", "model.layers.2.self_attn"]
    assert "2 of 3 layers have a memory" in words(inspected(*arguments))


@pytest.mark.parametrize("name", ["chat", "four", "empty"])
def test_a_session_without_its_texts(name, inspected, document):
    shown, found = inspected(f"{name}.safetensors"), document(f"{name}.safetensors")
    for output in (shown, json.dumps(found)):
        assert not any(text in output for text in ("word is", "How are", "Be brief"))
    chat = session_report(Path(f"{name}.safetensors"))
    assert found["tokens"] == sum(sum(turn[f"{part}_tokens"] for part in PARTS) for turn in found["turns"])
    assert len(found["turns"]) == (0 if name == "empty" else 2)
    assert found["has_system_prompt"]
    assert [state["layer"] for state in found["states"]] == [0, 1, 2]
    assert [len(state["effective_rank"]) for state in found["states"]] == [4 if name == "four" else 1] * 3
    assert found["origin"]["backbone"] in shown
    assert "arrays" not in found
    assert f"{len(chat.turns)}, in all {chat.tokens} tokens" in words(shown)


PARTS = ("message", "reply", "ending")


def test_every_field_of_a_document_is_named(document):
    text = ("--model", backbone(), "--text", "text.txt")
    sessions = ("diff", "chat.safetensors", "other.safetensors")
    for arguments in ((adapter(), *text), ("chat.safetensors",), ("diff", adapter(), adapter()), sessions):
        unnamed = {name for name in names_in(document(*arguments)) if not re.search(rf"\b{name}\b", inspect.__doc__)}
        assert unnamed == set()


# Objects with names that are data; names that are numbers stand for layers everywhere.
BY_NAME = ("config", "fields", "metadata", "strengths", "template_options", "tensors", "types")


def names_in(value: object, parent: str = "") -> set[str]:
    if isinstance(value, list):
        return {name for item in value for name in names_in(item)}
    if not isinstance(value, dict):
        return set()
    below = {name for key, item in value.items() for name in names_in(item, key)}
    return below if parent in BY_NAME else below | {name for name in value if not name.isdigit()}


def test_a_session_with_its_texts(inspected, document):
    assert SECRET in inspected("chat.safetensors", "--messages")
    found = document("chat.safetensors", "--messages")
    assert (found["system"], found["turns"][1]["user"]) == ("Be brief.", SECRET)


def test_a_session_is_measured_as_the_chat_itself(folder):
    chat, report = told(), session_report(folder / "chat.safetensors")
    assert report.tokens == len(chat.segments.ids)
    assert [state.norm for state in report.states] == pytest.approx(
        [mx.linalg.norm(state).item() for state in chat.memory.values()], rel=1e-5
    )
    assert [turn.kept for turn in report.turns] == [pytest.approx(drift.kept) for drift in chat.drift]
    assert [turn.changed for turn in report.turns] == [pytest.approx(drift.changed) for drift in chat.drift]
    assert report.keeps_text
    assert not session_report(folder / "same.safetensors").keeps_text


def test_turns_that_wrote_nothing_keep_the_memory_forever(inspected, document, folder):
    chat = told()
    chat.send("And what is it?", 5, read_only=True)
    chat.save(folder / "read.safetensors")
    turn = document("read.safetensors")["turns"][2]
    assert (turn["write"], turn["kept_mean"], turn["half_life"]) == ("none", 1.0, None)
    assert "3 (read only)" in words(inspected("read.safetensors"))
    assert "forever" in inspected("read.safetensors")


def test_a_diff_of_sessions(inspected, document):
    found = document("diff", "chat.safetensors", "other.safetensors")
    assert (found["kind"], found["identical"]) == ("session diff", False)
    assert found["fields"]["history"] == ["full", "none"]
    assert found["parting"]["shared_turns"] == 1
    assert found["parting"]["where"] == "message"
    assert 0 < found["states"]["distances"]["0"]["relative"] < 2
    shown = inspected("diff", "chat.safetensors", "other.safetensors")
    assert "part in turn 2, at its message" in words(shown)
    assert "word is" not in shown


def test_sessions_that_cannot_be_compared_layer_by_layer(inspected, document):
    found = document("diff", "chat.safetensors", "four.safetensors")
    assert found["states"]["misfits"]["1"] == "shape [1, 8, 8] and [4, 4, 4]"
    assert "adapter" in found["fields"]
    assert "shape [1, 8, 8] and [4, 4, 4] (layers 0-2)" in words(
        inspected("diff", "chat.safetensors", "four.safetensors")
    )


@pytest.mark.parametrize(
    ("a", "b", "where"), [("empty", "chat", "a ends"), ("chat", "empty", "b ends"), ("empty", "empty", None)]
)
def test_where_sessions_end(a, b, where, document):
    assert document("diff", f"{a}.safetensors", f"{b}.safetensors")["parting"]["where"] == where


@pytest.mark.parametrize(
    ("a", "b"),
    [("chat.safetensors", "chat.safetensors"), ("chat.safetensors", "same.safetensors"), (adapter(), adapter())],
)
def test_what_is_identical_is_said_to_be(a, b, inspected, document):
    assert document("diff", a, b)["identical"]
    assert inspected("diff", a, b).startswith("Identical")


def test_sessions_of_the_same_texts_and_other_tokens_are_not_identical(document, folder):
    chat = told()
    turn = chat._state.turns[-1]
    chat._state.turns[-1] = replace(turn, reply_ids=turn.reply_ids[::-1])
    chat.save(folder / "reversed.safetensors")
    found = document("diff", "chat.safetensors", "reversed.safetensors")
    assert (found["identical"], found["fields"], found["parting"]["where"]) == (False, {}, None)
    before = len(chat.segments.ids) - len(turn.reply_ids) - len(turn.ending.ids)
    assert before <= found["parting"]["shared_tokens"] < len(chat.segments.ids)


def test_a_diff_of_adapters(inspected, document):
    a, b = adapter("qwen3_tsw_qo"), adapter("qwen3_tsw_qkvo_lout")
    found = document("diff", a, b)
    assert found["fields"]["rank"] == [8, 4]
    assert found["tensors"]["model.layers.*.self_attn.lambda_proj"]["only_in_b"] == [0, 1, 2]
    assert found["tensors"]["model.layers.*.self_attn.beta_bias"]["misfits"]["0"] == "shape [8] and [4]"
    assert "only in B (layers 0-2)" in words(inspected("diff", a, b))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        (adapter(),),
        (adapter(), "--model", backbone()),
        ("chat.safetensors",),
        ("empty.safetensors",),
        ("diff", "chat.safetensors", "other.safetensors"),
        ("diff", adapter("qwen3_tsw_qo"), adapter("qwen3_tsw_qkvo_lout")),
    ],
)
@pytest.mark.filterwarnings("error:No artists")
def test_every_kind_has_a_figure(arguments, inspected, folder):
    pytest.importorskip("matplotlib")
    path = folder / "figure.svg"
    path.unlink(missing_ok=True)
    assert inspected(*arguments, "--plot", "figure.svg").endswith("Drew figure.svg\n")
    assert "<svg" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no folder nowhere"),
        (("nowhere.safetensors",), "there is no session file nowhere.safetensors"),
        (("text.txt",), "text.txt is a text file; expected a session that a chat saved, or the folder of an adapter"),
        ((backbone(),), "it is a model, which goes to --model"),
        ((f"{backbone()}/model.safetensors",), "tensors and no chat"),
        ((f"{backbone()}/config.json",), "is a text file"),
        ((f"{adapter()}/delta_mem_adapter.pt",), "is a file of the adapter in"),
        ((adapter(), adapter()), "expected one adapter or session, or `diff` and two of a kind"),
        (("diff", adapter()), "expected one adapter or session, or `diff` and two of a kind"),
        (("diff", adapter(), "chat.safetensors"), "is an adapter and chat.safetensors is a session; expected two"),
        (("diff", "chat.safetensors", "text.txt"), "text.txt is a text file"),
        ((adapter(), "--text", "text.txt"), "--text needs a --model"),
        ((adapter(), "--messages"), "--messages goes with one session"),
        (("chat.safetensors", "--model", backbone()), "--model goes with one adapter"),
        (("diff", adapter(), adapter(), "--model", backbone()), "--model goes with one adapter"),
        ((adapter("smollm3_tsw_qkvo"), "--model", backbone()), "does not fit: "),
        ((adapter(), "--model", "nowhere"), "nowhere is not a folder on this machine"),
        ((adapter(), "--model", backbone(), "--text", "none.txt"), "there is no text file none.txt"),
        ((adapter(), "--plot", "out.jpg"), "does not end in .png, .pdf, .svg"),
        ((adapter(), "--dark"), "--dark is for the figure of --plot; add --plot"),
        ((adapter(), "--plot", "nowhere/out.png"), "there is no folder nowhere"),
        (("nowhere", "--plot", "out.jpg"), "does not end in"),
    ],
)
def test_what_is_refused(arguments, message, refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b" \n", "is empty"), (b"abc\xff", "is not UTF-8")]
)
def test_texts_that_are_refused_before_the_model_is_loaded(content, message, refused, folder):
    (folder / "bad.txt").write_bytes(content)
    assert message in refused(adapter(), "--model", "nowhere", "--text", "bad.txt")


def test_a_plot_without_matplotlib(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'mlx-deltamem[plot]'" in refused(adapter(), "--plot", "out.png")


def test_a_lora_folder(refused, folder):
    lora = folder / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    mx.save_safetensors(str(lora / "adapters.safetensors"), {"layers.0.lora_a": mx.zeros(2)})
    assert "it is a LoRA or PEFT adapter" in refused(lora)
    assert "is a file of LoRA weights" in refused(lora / "adapters.safetensors")


def test_a_damaged_adapter(refused, folder):
    damaged = folder / "damaged"
    save_adapter(load_adapter(adapter()), damaged)
    weights = damaged / "delta_mem_adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "was cut short" in refused(damaged)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04....", "a zip archive"),
        ("é".encode() * 5000, "a text file"),
        (b"a" + "é".encode() * 5000, "a text file"),
        (bytes(range(256)), "a file of an unknown kind"),
        (b"\x02\0\0\0\0\0\0\0{}", "a safetensors file of 0 tensors and no chat"),
        (b"\x06\0\0\0\0\0\0\0[1, 2]", "a file of an unknown kind"),
    ],
)
def test_files_are_named_for_what_they_are(content, kind, refused, folder):
    (folder / "file").write_bytes(content)
    assert f"file is {kind}" in refused("file")


def test_a_session_that_was_cut_short(refused, folder):
    content = (folder / "chat.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-1])
    assert re.search(r"cut\.safetensors was cut short: the tensor .* use a complete copy", refused("cut.safetensors"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_session_is_refused(data, folder):
    content = bytearray((folder / "same.safetensors").read_bytes())
    path = folder / "altered.safetensors"
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"expected a session|was cut short|is damaged|is not a session|of session format"
    ) as error:
        session_report(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_dark_figure_has_a_dark_ground(tmp_path):
    grounds = []
    for more in ((), ("--dark",)):
        file = tmp_path / f"adapter{len(more)}.png"
        result = run_command("inspect", adapter(), "--plot", file, *more)
        assert result.returncode == 0, result.stderr
        grounds.append(image.imread(file)[0, 0, :3].tolist())
    assert grounds[0] == [1, 1, 1]
    assert max(grounds[1]) < 0.2
