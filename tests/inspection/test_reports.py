import io
import json
import math
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from rich.console import Console

from mlx_deltamem import Adapter, ChatSession, DeltaMemConfig, attach, current_adapter, load, load_adapter
from mlx_deltamem.inspection.adapter import adapter_report
from mlx_deltamem.inspection.adapter_diff import adapter_diff
from mlx_deltamem.inspection.distance import compare, distance
from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT, as_document
from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.inspection.model import attach_and_report
from mlx_deltamem.inspection.session import session_report
from mlx_deltamem.inspection.session_diff import session_diff
from mlx_deltamem.inspection.states import effective_rank, state_reports
from mlx_deltamem.inspection.tensors import norms_in_use
from mlx_deltamem.inspection.trace import trace_text, visible
from tests.conftest import adapter, backbone, randomise
from tests.families import tiny_model


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(8), 8.0),
        (1e-20 * np.eye(3), 3.0),
        (np.outer([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), 1.0),
        (np.diag([5.0, 5.0, 0.0, 0.0]), 2.0),
        (np.diag([3.0, 1.0]), math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        (np.zeros((4, 4)), 0.0),
        (np.full((2, 2), math.nan), math.nan),
        (np.diag([1.0, math.inf]), math.nan),
    ],
)
def test_effective_rank(matrix, expected):
    found = effective_rank(matrix.astype(np.float32))
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_states():
    two_heads = np.stack([np.diag([3.0, 0.0]), np.diag([0.0, -4.0])]).astype(np.float32)
    report = state_reports({5: two_heads})[0]
    assert (report.layer, report.norm, report.largest) == (5, 5.0, 4.0)
    assert report.effective_rank == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("a", "b", "relative", "cosine"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 1.0),
        ([1.0, 0.0], [-1.0, 0.0], 2.0, -1.0),
        ([2.0, 0.0], [0.0, 1.0], math.sqrt(5) / 2, 0.0),
        ([0.0, 0.0], [0.0, 7.0], 1.0, math.nan),
        ([0.0, 0.0], [0.0, 0.0], 0.0, math.nan),
        ([math.nan, 0.0], [math.nan, 0.0], 0.0, math.nan),
        ([math.inf, 0.0], [1.0, 0.0], math.nan, math.nan),
    ],
)
@pytest.mark.filterwarnings("error")
def test_distance(a, b, relative, cosine):
    found = distance(np.array(a), np.array(b))
    assert (found.relative, found.cosine) == pytest.approx((relative, cosine), nan_ok=True)


def test_what_cannot_be_compared_is_told():
    a = {0: np.ones((2, 2)), 1: np.ones(3), 2: np.ones(1)}
    b = {0: np.ones((2, 2)), 1: np.ones(4), 7: np.ones(1)}
    found = compare(a, b)
    assert [found.distances[0].relative, found.only_in_a, found.only_in_b] == [0.0, [2], [7]]
    assert found.misfits == {1: "shape [3] and [4]"}
    assert not found.is_identical
    assert compare(a, a).is_identical
    assert not compare({0: a[0]}, {0: a[0] * 1.0001}).is_identical


@dataclass
class _Inner:
    by_layer: dict[int, float]
    hidden: object = field(metadata=NOT_IN_DOCUMENT, default=None)


@settings(max_examples=40)
@given(st.floats(width=32), st.dictionaries(st.integers(0, 9), st.floats(), max_size=3), st.text())
def test_documents_are_json_without_nan(number, by_layer, text):
    report = [_Inner(by_layer, object()), (text, None, True, 3), np.array([[number, 0.5]], np.float32)]
    again = json.loads(json.dumps(as_document(report), allow_nan=False))
    expected = {str(layer): value if math.isfinite(value) else None for layer, value in by_layer.items()}
    assert again[0] == {"by_layer": expected}
    assert again[1] == [text, None, True, 3]
    assert again[2][0][1] == 0.5
    found = again[2][0][0]
    assert found is None if not math.isfinite(number) else found == pytest.approx(number, rel=1e-5)


def test_what_is_nothing_of_a_report():
    with pytest.raises(TypeError, match="a set cannot be in a report"):
        as_document({"a": {1}})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Anna", "␣Anna"),
        ("\n\n", "↵↵"),
        ("\t x", "⇥␣x"),
        ("   " * 9, "␣" * 11 + "…"),
        ("\x00\u200b", "U+0000U+200B"),
        ("", "#7"),
        ("a\ufffd", "#7"),
        ("naïve世", "naïve世"),
    ],
)
def test_tokens_can_be_seen(text, label):
    assert visible(text, 7) == label


def changed(name: str = "qwen3_tsw_qo", **replaced: float | mx.array) -> Adapter:
    """A golden adapter with some tensors multiplied, by the ends of their names."""
    found = load_adapter(adapter(name))
    factors = {key: next((replaced[end] for end in replaced if key.endswith(end)), 1.0) for key in found.weights}
    return replace(found, weights={key: tensor * factors[key] for key, tensor in found.weights.items()})


def test_an_adapter():
    found = changed(**{"layers.1.self_attn.delta_k_proj": 0.0})
    report = adapter_report(found)
    assert {name: report.config[name] for name in report.not_default} == {"delta_heads": ("q", "o")}
    assert report.parameters == found.parameters == sum(tensor.parameters for tensor in report.tensors)
    unused = sum(t.size for key, t in found.weights.items() if key.endswith(("delta_k_proj", "delta_v_proj")))
    assert report.parameters - report.parameters_in_use == unused > 0
    assert report.bytes == sum(tensor.nbytes for tensor in found.weights.values())
    assert (report.state_shape, report.state_bytes, report.layers) == ([1, 8, 8], 768, [0, 1, 2])
    by_name = {tensor.name: tensor for tensor in report.tensors}
    queries = by_name["model.layers.*.self_attn.memory_q_proj"]
    weight = found.weights["model.layers.1.self_attn.memory_q_proj"]
    assert queries.norms[1] == pytest.approx(np.linalg.norm(np.array(weight)), rel=1e-6)
    assert (queries.shape, queries.dtype, queries.in_use, queries.zero_in) == ([8, 64], "float32", True, [])
    unused = by_name["model.layers.*.self_attn.delta_k_proj"]
    assert (unused.in_use, unused.zero_in) == (False, [1])
    assert report.idle_layers == []
    assert report.metadata["converted_from"] == "delta_mem_adapter.pt"


def test_tensors_of_different_types_are_told_apart():
    found = load_adapter(adapter())
    key = "model.layers.1.self_attn.beta_bias"
    mixed = replace(found, weights=dict(found.weights) | {key: found.weights[key].astype(mx.bfloat16)})
    report = adapter_report(mixed)
    kinds = [(t.dtype, list(t.norms)) for t in report.tensors if t.short_name == "beta_bias"]
    assert sorted(kinds) == [("bfloat16", [1]), ("float32", [0, 2])]
    assert list(norms_in_use(report.tensors)["beta_bias"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("zeros", "idle"),
    [
        ({"memory_q_proj": 0.0}, [0, 1, 2]),
        ({"layers.1.self_attn.memory_k_proj": 0.0}, [1]),
        ({"layers.2.self_attn.memory_v_proj": 0.0}, [2]),
        ({"delta_q_proj": 0.0}, []),
        ({"delta_q_proj": 0.0, "layers.0.self_attn.delta_o_proj": 0.0}, [0]),
        ({"beta_proj": 0.0, "beta_bias": 0.0}, []),
    ],
)
def test_layers_without_an_effect(zeros, idle):
    assert adapter_report(changed(**zeros)).idle_layers == idle


def test_state_heads_without_an_effect():
    # Of four heads of rank 4, nothing written to the second, nothing read from the last.
    rows = mx.repeat(mx.array([1.0, 0.0, 1.0, 1.0]), 4)[:, None]
    columns = mx.repeat(mx.array([1.0, 1.0, 1.0, 0.0]), 4)
    report = adapter_report(changed("qwen3_msw4", memory_v_proj=rows, delta_q_proj=columns, delta_o_proj=columns))
    assert report.idle_state_heads == {layer: [1, 3] for layer in range(3)}
    assert report.idle_layers == []
    silent = replace(load_adapter(adapter()), config=replace(load_adapter(adapter()).config, alpha=0.0))
    assert adapter_report(silent).idle_layers == [0, 1, 2]


def test_a_norm_of_zeros_silences_the_output():
    found = changed("qwen3_ssw_sent", delta_q_proj=0.0)
    assert adapter_report(found).idle_layers == []
    assert adapter_report(changed("qwen3_ssw_sent", delta_q_proj=0.0, rmsnorm_weight=0.0)).idle_layers == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_next"])
@pytest.mark.parametrize("bits", [None, 8])
def test_a_model(family, bits):
    model = tiny_model(family, bits)
    config = DeltaMemConfig(rank=4, alpha=2.0, delta_heads=("q", "o"), trainable_delta_scale=True)
    attach(model, config)
    randomise(model)
    trained = current_adapter(model)
    fresh = tiny_model(family, bits)
    report = attach_and_report(fresh, trained, "a model")
    total = sum(weight.size for _, weight in tree_flatten(tiny_model(family).parameters()))
    # mlx-lm does not count a few weights of qwen3_next.
    assert report.backbone_parameters == pytest.approx(total, rel=1e-3 if family == "qwen3_next" else 0)
    assert report.share == report.adapter.parameters_in_use / report.backbone_parameters
    assert sorted(report.strengths) == ["o", "q"]
    layer = report.adapter.layers[0]
    key = next(key for key in trained.weights if f"layers.{layer}." in key and key.endswith("delta_o_proj"))
    raw = trained.weights[key.replace("delta_o_proj", "delta_scale_raw")]
    scale = 2.0 / 4 * 2.0 / (1 + math.exp(-raw.item()))
    frozen = dict(tiny_model(family).named_modules())[report.attached[0]].o_proj.weight
    expected = scale * mx.linalg.norm(trained.weights[key]).item() / mx.linalg.norm(frozen).item()
    assert report.strengths["o"][layer] == pytest.approx(expected, rel=1e-5 if bits is None else 1e-2)


def test_a_normalised_correction_has_no_strength_of_its_own():
    model = tiny_model("llama")
    attach(model, DeltaMemConfig(delta_heads=("q", "o"), delta_o_rmsnorm=True))
    trained = current_adapter(model)
    assert list(attach_and_report(tiny_model("llama"), trained, "").strengths) == ["q"]


def test_a_diff_of_adapters():
    one = load_adapter(adapter())
    assert adapter_diff(one, load_adapter(adapter())).identical
    other = changed(**{"layers.1.self_attn.memory_q_proj": -0.5})
    diff = adapter_diff(one, other)
    assert not diff.identical
    assert (diff.fields, diff.types) == ({}, {})
    found = diff.tensors["model.layers.*.self_attn.memory_q_proj"].distances
    assert [found[layer].relative for layer in (0, 1, 2)] == pytest.approx([0.0, 1.5, 0.0])
    assert [found[layer].cosine for layer in (0, 1, 2)] == pytest.approx([1.0, -1.0, 1.0])
    assert all(each.is_identical for name, each in diff.tensors.items() if "memory_q" not in name)


def test_a_diff_of_types_and_names():
    one = load_adapter(adapter())
    half = replace(one, weights={name: tensor.astype(mx.bfloat16) for name, tensor in one.weights.items()})
    lacking = replace(one, weights={name: t for name, t in one.weights.items() if not name.endswith("delta_k_proj")})
    assert set(adapter_diff(one, half).types.values()) == {("float32", "bfloat16")}
    diff = adapter_diff(lacking, one)
    assert not diff.identical
    assert diff.tensors["model.layers.*.self_attn.delta_k_proj"].only_in_b == [0, 1, 2]
    # The same numbers in another type.
    exact = replace(half, weights={name: tensor.astype(mx.float32) for name, tensor in half.weights.items()})
    assert not adapter_diff(half, exact).identical
    assert all(each.is_identical for each in adapter_diff(half, exact).tensors.values())


@pytest.fixture
def shifted() -> ChatSession:
    """A chat of an adapter with a key shift."""
    model, tokenizer = load(backbone())
    attach(model, DeltaMemConfig(rank=4, num_state_heads=2, key_shift=True))
    randomise(model)
    chat = ChatSession(model, tokenizer)
    chat.send("My word is jade!", 4)
    assert {state.shape for state in chat.memory.values()} == {(1, 2, 5, 4)}
    return chat


def test_the_row_of_a_key_shift_is_held_and_not_measured(shifted, tmp_path):
    shifted.save(tmp_path / "chat.safetensors")
    report = session_report(tmp_path / "chat.safetensors")
    of_adapter = adapter_report(current_adapter(shifted.model))
    assert (report.state_shape, report.state_bytes) == ([2, 5, 4], 3 * 2 * 5 * 4 * 4)
    assert (of_adapter.state_shape, of_adapter.state_bytes) == (report.state_shape, report.state_bytes)
    for state in report.states:
        matrices = np.array(shifted.memory[state.layer])[0, :, :4]
        assert state.norm == pytest.approx(np.linalg.norm(matrices), rel=1e-6)
        assert state.largest == np.abs(matrices).max()
        assert state.effective_rank == pytest.approx([effective_rank(head) for head in matrices])
        assert np.array_equal(report.arrays[state.layer], matrices)


def test_a_trace_measures_the_matrices_of_a_key_shift(shifted):
    found = trace_text(shifted.model, shifted.tokenizer, "My name is Anna.", lambda *_: None)
    assert {state.shape for state in found.states.values()} == {(2, 4, 4)}
    assert found.norms[:, -1] == pytest.approx([state.norm for state in found.final], rel=1e-6)


def test_a_heat_map_shows_the_matrices_of_a_key_shift(shifted):
    console = Console(file=io.StringIO(), width=100, record=True)
    states = {layer: mx.zeros_like(state) for layer, state in shifted.memory.items()}
    for state in states.values():
        state[:, :, -1] = 7.0
    console.print(memory_view(states, None, console))
    shown = console.export_text()
    assert "the memory is empty" in shown
    assert shown.count("scale       0") == shown.count("norm        0") == 3


def test_a_diff_compares_the_row_of_a_key_shift_too(shifted, tmp_path):
    paths = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    shifted.save(paths[0])
    states = shifted.memory
    states[1][:, :, -1] += 1.0
    shifted.memory = states
    shifted.save(paths[1])
    diff = session_diff(*paths)
    assert not diff.identical
    assert [diff.states.relative[layer] > 0 for layer in (0, 1, 2)] == [False, True, False]


def test_a_key_shift_writes_where_there_are_no_keys(shifted):
    found = current_adapter(shifted.model)
    no_keys = {key: t * (0.0 if key.endswith("memory_k_proj") else 1.0) for key, t in found.weights.items()}
    assert adapter_report(replace(found, weights=no_keys)).idle_layers == []
    neither = {key: t * (0.0 if key.endswith("key_shift") else 1.0) for key, t in no_keys.items()}
    assert adapter_report(replace(found, weights=neither)).idle_layers == [0, 1, 2]
