"""The reference's own results on its own tiny models: every case, and the forwards of every chat."""

from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import load, make_prompt_cache, memory, read_only, set_memory, write_spans
from mlx_deltamem.core.cache import PromptCache
from tests.conftest import GOLDENS, adapter, backbone, distance, golden, golden_names

LOGITS, STATES, OUTPUTS = 1e-4, 2e-5, 1e-5


class Case:
    """A golden case with its model."""

    def __init__(self, name: str):
        self.info, self.data = golden("cases", name)
        self.model, _ = load(backbone(self.info["backbone"]), adapter=adapter(self.info["adapter"]))
        self.ids = self.data["input_ids"]

    def spans(self, columns: slice = slice(None), prefix: str = ""):
        names = [f"{prefix}{name}" for name in ("message_ids", "sentence_ids")]
        if names[0] not in self.data:
            return nullcontext()
        return write_spans(self.model, *(self.data[name][:, columns] for name in names))

    def states(self, prefix: str) -> dict[int, mx.array]:
        """`[B, H, r, r]` by layer."""
        start = f"{prefix}."
        found = {int(name.removeprefix(start)): state for name, state in self.data.items() if name.startswith(start)}
        assert sorted(found) == self.info["attached_layers"]
        return {layer: state[:, None] if state.ndim == 3 else state for layer, state in found.items()}

    def check(self, prefix: str, logits: mx.array | None, cache: PromptCache) -> None:
        if logits is not None:
            assert distance(logits, self.data[f"{prefix}.logits"]) <= LOGITS
        assert_states(cache, self.states(f"{prefix}.state"))


def assert_states(cache: PromptCache, expected: dict[int, mx.array]) -> None:
    found = memory(cache)
    assert found.keys() == expected.keys()
    for layer, state in expected.items():
        assert distance(found[layer], state) <= STATES


@pytest.fixture(params=golden_names("cases"))
def case(request) -> Case:
    return Case(request.param)


def test_frozen_backbone(case):
    frozen, _ = load(backbone(case.info["backbone"]))
    assert distance(frozen(case.ids), case.data["base_logits"]) <= LOGITS


def test_one_forward_then_a_read_only_one(case):
    cache = make_prompt_cache(case.model)
    with case.spans():
        case.check("full", case.model(case.ids, cache=cache), cache)
    warm = make_prompt_cache(case.model)
    warm[-1] = cache[-1]
    before = memory(warm)
    with read_only(case.model):
        logits = case.model(case.data["readonly.input_ids"], cache=warm)
    assert distance(logits, case.data["readonly.logits"]) <= LOGITS
    assert all(mx.array_equal(state, before[layer]) for layer, state in memory(warm).items())


def test_attention_input_and_output(case):
    attention = case.model.layers[case.info["attn_io_layer"]].self_attn
    recorded = {}
    attached_class = type(attention)

    class Recorder(attached_class):
        def __call__(self, x: mx.array, *args: object, **kwargs: object) -> mx.array:
            recorded["in"] = x
            recorded["out"] = super().__call__(x, *args, **kwargs)
            return recorded["out"]

    attention.__class__ = Recorder
    with case.spans():
        case.model(case.ids, cache=make_prompt_cache(case.model))
    assert distance(recorded["in"], case.data["full.attn_in"]) <= OUTPUTS
    assert distance(recorded["out"], case.data["full.attn_out"]) <= OUTPUTS


def test_two_chunks_then_two_tokens(case):
    split = case.info["chunk_split"]
    cache = make_prompt_cache(case.model)
    with case.spans(slice(0, split)):
        case.model(case.ids[:, :split], cache=cache)
    case.check("chunk1", None, cache)
    with case.spans(slice(split, None)):
        case.check("chunk2", case.model(case.ids[:, split:], cache=cache), cache)
    with case.spans(prefix="decode."):
        steps = [case.model(case.data["decode.input_ids"][:, t : t + 1], cache=cache) for t in range(2)]
    case.check("decode", mx.concatenate(steps, axis=1), cache)


def test_warm_start(case):
    columns = slice(0, case.info["warm_T"])
    cache = make_prompt_cache(case.model)
    set_memory(cache, case.states("warm.state0"))
    with case.spans(columns):
        case.check("warm", case.model(case.ids[:, columns], cache=cache), cache)


@pytest.mark.parametrize("ids", ["none", "all -1"])
@pytest.mark.parametrize("name", ["qwen3_ssw_msg", "qwen3_ssw_sent"])
def test_without_spans_mean_adapters_write_tokens(name, ids):
    case = Case(name)
    tokens = case.ids[:, : case.info["noids_T"]]
    nothing = mx.full(tokens.shape, -1)
    cache = make_prompt_cache(case.model)
    with nullcontext() if ids == "none" else write_spans(case.model, nothing, nothing):
        case.check("noids", case.model(tokens, cache=cache), cache)


def test_every_padded_case_was_found():
    assert [name for name in golden_names("cases") if "padded.input_ids" in golden("cases", name)[1]] == [
        "qwen3_tsw_qo"
    ]


def test_left_padded_batch():
    case = Case("qwen3_tsw_qo")
    valid = case.data["padded.attention_mask"]
    cache = make_prompt_cache(case.model, left_padding=(1 - valid).sum(axis=1).tolist())
    logits = case.model(case.data["padded.input_ids"], cache=cache)
    case.check("padded", logits * valid[..., None], cache)


@pytest.mark.parametrize("name", golden_names("sessions"))
def test_chat_forwards(name):
    """Every model call of a golden chat, one after the other: the greedy tokens, the logits and the states."""
    info, data = golden("sessions", name)
    model, _ = load(backbone(info["backbone"]), adapter=adapter(info["adapter"]))
    cache = make_prompt_cache(model)
    for number, turn in enumerate(info["turns"]):
        for forward in turn["forwards"]:
            if forward["past_len"] == 0:
                cache = make_prompt_cache(model)
            logits = run_forward(model, cache, forward)
            if forward["kind"] != "materialize":
                assert mx.argmax(logits).item() == forward["argmax_last"]
            if forward["kind"] == "prompt":
                assert distance(logits, data[f"turn{number}.prompt_last_logits"]) <= LOGITS
        assert distance(logits, data[f"turn{number}.final_last_logits"]) <= LOGITS
        start = f"turn{number}.state."
        states = {int(key.removeprefix(start)): state for key, state in data.items() if key.startswith(start)}
        assert_states(cache, {layer: s[:, None] if s.ndim == 3 else s for layer, s in states.items()})


def run_forward(model: nn.Module, cache: PromptCache, forward: dict) -> mx.array:
    ids = [forward[key] for key in ("message_ids", "sentence_ids")]
    spans = write_spans(model, *([row] for row in ids)) if forward["write_enabled"] else read_only(model)
    with spans:
        return model(mx.array([forward["input_ids"]]), cache=cache)[0, -1]


def test_nothing_golden_is_left_out():
    assert len(golden_names("cases")) == len(list((GOLDENS / "adapters").iterdir())) == 9
    assert len(golden_names("scan")) == 13
    assert len(golden_names("sessions")) == 5
