"""Files of the reference and of the other MLX port: reading, writing, and refusing anything else."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem import ChatSession, load
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.cli.convert_session import convert_session
from mlx_deltamem.sessions.foreign.folder import foreign_format, read_foreign_session, write_reference_session
from mlx_deltamem.sessions.foreign.states import fitted_states, read_sidecar_states, write_sidecar_states
from mlx_deltamem.sessions.foreign.turns import find_replies
from tests.conftest import adapter, backbone, distance, golden_names
from tests.foreign import MESSAGES, golden_chat, named, reference_folder, same, states

DTYPES = [mx.float32, mx.bfloat16, mx.float16]


@pytest.mark.parametrize("name", golden_names("sessions"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_golden_chat_of_the_reference_is_read_to_the_bit(name, dtype, tmp_path):
    info, tensors = golden_chat(name)
    stored = {key: state.astype(dtype) for key, state in tensors.items()}
    ids = info["turns"][-1]["full_ids_after_turn"]
    chat = read_foreign_session(reference_folder(tmp_path / "a", stored, info["final"]["messages"], ids))
    assert chat.ids == ids
    assert chat.system == info["system"]
    system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    assert system + chat.messages == info["final"]["messages"]
    for (_, state), (layer, found) in zip(stored.items(), chat.states.items(), strict=True):
        assert found.dtype == mx.float32
        assert mx.array_equal(found[:, 0] if state.ndim == 3 else found, state.astype(mx.float32)), layer
    model, _ = load(backbone(info["backbone"]), adapter=adapter(info["adapter"]))
    fitted = fitted_states(tmp_path / "a", chat.states, model.memory_layout.shapes)
    assert all(mx.array_equal(state, chat.states[layer]) for layer, state in enumerate(fitted))


@pytest.mark.parametrize("name", [name for name in golden_names("sessions") if "rebuild" not in name])
def test_a_chat_of_ours_becomes_the_folder_the_reference_would_have_written(name, tmp_path):
    info, tensors = golden_chat(name)
    chat = ChatSession(*load(backbone(info["backbone"]), adapter=adapter(info["adapter"])), system=info["system"])
    for turn in info["turns"]:
        chat.send(turn["user"], info["max_new_tokens"], read_only=not turn["write_enabled"])
    chat.save(tmp_path / "chat.safetensors")
    convert_session(tmp_path / "chat.safetensors", tmp_path / "theirs", "torch")
    session = json.loads((tmp_path / "theirs" / "session.json").read_text())
    assert session["messages"] == info["final"]["messages"]
    assert session["processed_input_ids"] == info["turns"][-1]["full_ids_after_turn"]
    found = load_torch(tmp_path / "theirs" / "delta_state.pt")
    assert list(found) == list(tensors)
    assert all(distance(found[key], state) <= 2e-5 for key, state in tensors.items())
    assert same(read_foreign_session(tmp_path / "theirs").states, chat.memory)


@pytest.mark.parametrize("name", golden_names("sessions"))
def test_the_replies_are_found_in_the_tokens_of_a_chat(name):
    turns = golden_chat(name)[0]["turns"]
    if "rebuild" in name:
        turns = turns[:2]  # The third begins with an edit.
    before = [[], *(turn["full_ids_after_turn"] for turn in turns)]
    openings = [turn["prompt_ids"][len(ids) :] for turn, ids in zip(turns, before, strict=False)]
    endings = [turn["full_ids_after_turn"][len(turn["prompt_ids"]) + len(turn["generated_ids"]) :] for turn in turns]
    replies = [turn["generated_ids"] for turn in turns]
    assert find_replies(before[-1], openings, endings) == replies
    assert find_replies([*before[-1], 7], openings, endings) is None
    assert find_replies(before[-1][1:], openings, endings) is None
    assert find_replies(before[-1], openings, [[*ending, 7] for ending in endings]) is None
    assert find_replies([], [], []) == []


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_folder_of_the_reference_keeps_every_bit(heads, dtype, tmp_path):
    kept = {layer: state.astype(dtype).astype(mx.float32) for layer, state in states(heads, layers=(0, 2, 35)).items()}
    write_reference_session(tmp_path / "a", MESSAGES, kept, ids=[5, 6], dtype=dtype)
    chat = read_foreign_session(tmp_path / "a")
    assert (chat.system, chat.messages, chat.ids) == ("Be brief.", MESSAGES[1:], [5, 6])
    assert same(chat.states, kept)
    found = load_torch(tmp_path / "a" / "delta_state.pt")
    assert list(found) == [f"model.layers.{layer}.self_attn" for layer in (0, 2, 35)]
    shape = (1, 4, 4) if heads == 1 else (1, heads, 4, 4)
    assert {(state.shape, state.dtype) for state in found.values()} == {(shape, dtype)}
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def test_the_names_of_other_attention_modules_are_kept(tmp_path):
    write_reference_session(tmp_path / "a", [], states(), {0: "mixer.attn", 1: "self_attn", 2: "self_attn"})
    assert next(iter(load_torch(tmp_path / "a" / "delta_state.pt"))) == "model.layers.0.mixer.attn"
    assert list(read_foreign_session(tmp_path / "a").states) == [0, 1, 2]


def test_a_chat_before_its_first_turn(tmp_path):
    chat = read_foreign_session(reference_folder(tmp_path / "a", {}, [], []))
    assert (chat.system, chat.messages, chat.states, chat.ids) == (None, [], {}, None)
    zeros = fitted_states(tmp_path / "a", chat.states, [(1, 4, 4), (0, 0, 0)])
    assert [state.shape for state in zeros] == [(1, 1, 4, 4), (1, 0, 0, 0)]
    assert not zeros[0].any()


def test_the_keys_and_values_of_the_reference_are_never_opened(tmp_path):
    folder = reference_folder(tmp_path / "a")
    read_foreign_session(folder)
    assert not (folder / "pwned").exists()
    (folder / "past_key_values.pt").unlink()
    (folder / "past_key_values.pt").mkdir()
    assert len(read_foreign_session(folder).messages) == 2


def test_the_states_of_the_other_port_keep_every_bit(tmp_path):
    kept = states(layers=(0, 7))
    write_sidecar_states(tmp_path / "a.npz", kept)
    assert same(read_sidecar_states(tmp_path / "a.npz"), kept)
    assert same(read_foreign_session(tmp_path / "a.npz").states, kept)
    assert {name: array.shape for name, array in mx.load(str(tmp_path / "a.npz")).items()} == {
        "layer_0": (1, 4, 4),
        "layer_7": (1, 4, 4),
    }
    assert (tmp_path / "a.npz").stat().st_mode & 0o077 == 0
    write_sidecar_states(tmp_path / "a.npz", states())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_of_the_other_port_is_read_to_the_bit(dtype, tmp_path):
    """The file is as that port writes it: with MLX, and with the layers in any order."""
    kept = {layer: state.astype(dtype) for layer, state in states(layers=(10, 2)).items()}
    mx.savez(str(tmp_path / "delta_state.npz"), **{f"layer_{layer}": state[:, 0] for layer, state in kept.items()})
    found = read_sidecar_states(tmp_path / "delta_state.npz")
    assert list(found) == [2, 10]
    assert same(found, {layer: kept[layer].astype(mx.float32) for layer in (2, 10)})


def message(role: object, content: object = "x") -> dict:
    return {"role": role, "content": content}


STATE = mx.zeros((1, 4, 4))
REFUSED = {
    "no names of modules": ({"tensors": {"memory": STATE}}, "holds 'memory'; expected states named after"),
    "adapter": ({"tensors": {"model.layers.0": STATE}}, "expected states named after attention modules"),
    "two for a layer": (
        {"tensors": {"model.layers.0.self_attn": STATE, "layers.00.attn": STATE}},
        "two states for one layer",
    ),
    "flat": ({"tensors": {"model.layers.0.self_attn": mx.zeros((4, 4))}}, "has shape (4, 4); expected (1, r, r)"),
    "not square": ({"tensors": {"model.layers.0.self_attn": mx.zeros((1, 4, 5))}}, "has shape (1, 4, 5)"),
    "empty": ({"tensors": {"model.layers.0.self_attn": mx.zeros((1, 0, 0))}}, "has shape (1, 0, 0)"),
    "batch": ({"tensors": {"model.layers.0.self_attn": mx.zeros((3, 4, 4))}}, "is of 3 chats at once"),
    "shapes": (
        {"tensors": {"a.layers.0.b": STATE, "a.layers.1.b": mx.zeros((1, 8, 8))}},
        "states of shapes (1, 4, 4) and (1, 8, 8); expected one shape",
    ),
    "nan": ({"tensors": {"a.layers.3.b": STATE + mx.nan}}, "holds NaN or infinite values (layer 3)"),
    "messages": ({"messages": "hello"}, "has no list of messages"),
    "no role": ({"messages": [{"content": "x"}]}, "message 0 is not an object with a role and a content"),
    "parts": ({"messages": [message("user", [{"text": "x"}])]}, "message 0 is not an object with a role"),
    "surrogate": ({"messages": [message("user", "\ud800"), message("assistant")]}, "message 0 is not Unicode text"),
    "tool": ({"messages": [message("user"), message("tool")]}, "message 1 has the role 'tool', expected 'assistant'"),
    "late system": ({"messages": [message("user"), message("system")]}, "message 1 has the role 'system'"),
    "no reply": ({"messages": [message("user")]}, "the last message has no reply"),
    "no ids": ({"ids": None}, "has no list of tokens"),
    "texts": ({"ids": ["1"]}, "has no list of tokens"),
    "bools": ({"ids": [True]}, "has no list of tokens"),
    "negative": ({"ids": [-1]}, "has no list of tokens"),
    "large": ({"ids": [1 << 31]}, "has no list of tokens"),
}


def refusal(path: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        read_foreign_session(path)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_something_else_are_refused(case, tmp_path):
    options, expected = REFUSED[case]
    if case == "surrogate":
        folder = reference_folder(tmp_path / "a")
        (folder / "session.json").write_text(json.dumps({"messages": options["messages"], "processed_input_ids": []}))
    else:
        folder = reference_folder(tmp_path / "a", **options)
    assert expected in refusal(folder)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = reference_folder(tmp_path / "a")
    (folder / "session.json").write_bytes(b"[" * 100_000)
    assert "is damaged (JSON that is nested too deeply" in refusal(folder)
    (folder / "session.json").write_bytes(b"[]")
    assert "does not hold an object" in refusal(folder)
    (folder / "session.json").unlink()
    assert foreign_format(folder) is not None
    assert "lacks session.json; copy the whole folder" in refusal(folder, FileNotFoundError)
    (folder / "delta_state.pt").unlink()
    assert foreign_format(folder) is None
    assert "lacks session.json and delta_state.pt" in refusal(folder, FileNotFoundError)
    assert "there is no file" in refusal(tmp_path / "b.npz", FileNotFoundError)
    assert "is neither the PyTorch reference's session folder nor" in refusal(tmp_path / "b.txt")


SIDECAR = {
    "nothing": ({}, "holds no arrays"),
    "adapter": ({"model.layers.0.self_attn.beta_bias": np.zeros(4, np.float32)}, "expected the states of the other"),
    "more": ({"layer_0": np.zeros((1, 4, 4), np.float32), "updates": np.zeros(1, np.float32)}, "holds 'updates'"),
    "whole numbers": ({"layer_0": np.zeros((1, 4, 4), np.int32)}, "holds int32 in layer_0"),
    "no number": ({"layer_x": np.zeros((1, 4, 4), np.float32)}, "holds 'layer_x'"),
    "endless number": ({f"layer_{'1' * 99}": np.zeros((1, 4, 4), np.float32)}, "holds 'layer_111"),
    "batch": ({"layer_0": np.zeros((2, 4, 4), np.float32)}, "is of 2 chats at once"),
    "infinite": ({"layer_0": np.full((1, 4, 4), np.inf, np.float32)}, "holds NaN or infinite values (layer 0)"),
}


@pytest.mark.parametrize("case", SIDECAR)
def test_files_that_are_something_else_are_refused(case, tmp_path):
    arrays, expected = SIDECAR[case]
    np.savez(tmp_path / "a.npz", **arrays)
    assert expected in refusal(tmp_path / "a.npz")


def test_states_of_another_adapter_do_not_fit(tmp_path):
    path, shapes = Path("a.npz"), [(1, 4, 4), (0, 0, 0), (1, 4, 4)]
    assert [state.shape[-1] for state in fitted_states(path, states(layers=(0, 2)), shapes)] == [4, 0, 4]
    for layers in ((0,), (0, 1, 2), (0, 2, 3)):
        with pytest.raises(ValueError, match="but this model has a memory in layers 0, 2; load it with the adapter"):
            fitted_states(path, states(layers=layers), shapes)
    for heads, rank in ((2, 4), (1, 8)):
        with pytest.raises(ValueError, match=r"but this model's are \[1, 4, 4\]"):
            fitted_states(path, states(heads, rank, (0, 2)), shapes)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    huge = {0: mx.full((1, 1, 4, 4), 1e6)}
    (tmp_path / "there").mkdir()
    for write, expected in (
        (lambda: write_reference_session(tmp_path / "there", [], states()), "exists already"),
        (lambda: write_reference_session(tmp_path / "a", MESSAGES[:2], states()), "the last message has no reply"),
        (lambda: write_reference_session(tmp_path / "a", [], huge, dtype=mx.float16), "too large for float16"),
        (lambda: write_reference_session(tmp_path / "a", [], {0: STATE + mx.inf}), "NaN or infinite"),
        (lambda: write_reference_session(tmp_path / "a", [], states(), ids=[-1]), "no list of tokens"),
        (lambda: write_sidecar_states(tmp_path / "a.npz", states(2)), "has 2 state heads and the other MLX port knows"),
        (lambda: write_sidecar_states(tmp_path / "a.npz", {}), "has no memory yet"),
        (lambda: write_sidecar_states(tmp_path / "a.txt", states()), "does not end in .npz"),
        (lambda: write_sidecar_states(tmp_path / "no" / "a.npz", states()), "there is no folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            write()

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("mlx_deltamem.sessions.foreign.folder.save_torch", full)
    monkeypatch.setattr(np, "savez", full)
    for write in (
        lambda: write_reference_session(tmp_path / "a", MESSAGES, states()),
        lambda: write_sidecar_states(tmp_path / "a.npz", states()),
    ):
        with pytest.raises(OSError, match="disk full"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """One chat in each format."""
    folder = tmp_path_factory.mktemp("good")
    reference_folder(folder / "reference", named(states(rank=2)))
    write_sidecar_states(folder / "states.npz", states(rank=2))
    return folder


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), file=st.sampled_from(["reference/session.json", "reference/delta_state.pt", "states.npz"]))
def test_damaged_files_give_a_value_error_or_a_chat(data, file, good, tmp_path):
    content = bytearray((good / file).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    shutil.copytree(good, tmp_path / "x", dirs_exist_ok=True)
    (tmp_path / "x" / file).write_bytes(content)
    path = tmp_path / "x" / file
    try:
        chat = read_foreign_session(path if path.suffix == ".npz" else path.parent)
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < len(str(path)) + 400
    else:
        assert all(state.dtype == mx.float32 and state.ndim == 4 for state in chat.states.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_reads_and_writes_the_same_folder(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    kept = {layer: state.astype(dtype).astype(mx.float32) for layer, state in states().items()}
    write_reference_session(tmp_path / "a", MESSAGES, kept, ids=[5, 6], dtype=dtype)
    theirs = torch.load(tmp_path / "a" / "delta_state.pt", map_location="cpu", weights_only=True)
    assert [value.float().tolist() for value in theirs.values()] == [state[:, 0].tolist() for state in kept.values()]
    assert torch.load(tmp_path / "a" / "past_key_values.pt", map_location="cpu", weights_only=False) is None
    torch.save({name: value.clone() for name, value in theirs.items()}, tmp_path / "a" / "delta_state.pt")
    assert same(read_foreign_session(tmp_path / "a").states, kept)
