import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mlx_deltamem import DeltaMemConfig, attach, detach, load, make_prompt_cache, memory
from mlx_deltamem.core.use import observing
from mlx_deltamem.inspection import trace as trace_module
from mlx_deltamem.inspection.trace import Trace, trace_text
from tests.conftest import backbone, distance, randomise
from tests.sessions.test_session import every_kind, loaded

TEXT = "My name is Anna and I keep bees in Norway."


def trace(model, tokenizer, text: str = TEXT) -> Trace:
    return trace_text(model, tokenizer, text, lambda *_: None)


@every_kind
def test_the_states_are_those_of_a_plain_run(kind):
    model, tokenizer = loaded(kind)
    found = trace(model, tokenizer)
    assert found.tokens == tokenizer.encode(TEXT)
    assert "".join(found.texts) == TEXT
    assert found.places == list(range(1, len(found.tokens) + 1))
    for place in (1, 7, len(found.tokens)):
        cache = make_prompt_cache(model)
        model(mx.array([found.tokens[:place]]), cache=cache)
        norms = [mx.linalg.norm(state).item() for state in memory(cache).values()]
        assert found.norms[:, place - 1] == pytest.approx(norms, abs=2e-5)
    assert list(memory(cache)) == found.layers == [state.layer for state in found.final]
    assert all(distance(mx.array(found.states[i]), state[0]) <= 2e-5 for i, state in memory(cache).items())


def test_the_gates_of_every_token():
    model, tokenizer = loaded("qwen3_msw4")
    found = trace(model, tokenizer)
    seen: dict[int, tuple] = {}
    with observing(model, lambda layer, reads, _: seen.update({layer: reads.gates})):
        model(mx.array([found.tokens]))
    for row, layer in enumerate(found.layers):
        write, keep = (np.array(gate).mean(axis=(2, 3))[0] for gate in (seen[layer].write, seen[layer].keep))
        assert np.abs(found.write[row] - write).max() <= 1e-5
        assert np.abs(found.keep[row] - keep).max() <= 1e-5
    assert np.abs(found.keep + found.write - 1).max() <= 1e-6


def test_the_correction_is_what_the_layer_gives_more_than_the_frozen_one():
    model, tokenizer = load(backbone())
    attach(model, DeltaMemConfig(rank=4, delta_heads=("o",)))
    randomise(model)
    found = trace(model, tokenizer)
    first = model.layers[0]
    x = first.input_layernorm(model.model.embed_tokens(mx.array([found.tokens])))
    corrected = first.self_attn(x, "causal", None)
    detach(model)
    frozen = first.self_attn(x, "causal", None)
    expected = mx.linalg.norm(corrected - frozen, axis=-1) / mx.linalg.norm(frozen, axis=-1)
    assert expected.max().item() > 0.01
    assert distance(mx.array(found.correction[0]), expected[0]) <= 1e-5


def test_an_adapter_that_does_not_correct_the_output():
    model, tokenizer = load(backbone(), adapter=None)
    attach(model, DeltaMemConfig(rank=4, delta_heads=("q", "v")))
    assert trace(model, tokenizer).correction is None


def test_a_long_text_is_read_in_steps(monkeypatch):
    model, tokenizer = loaded()
    whole, told = trace(model, tokenizer), []
    monkeypatch.setattr(trace_module, "_PLACES", 4)
    count = len(whole.tokens)
    found = trace_text(model, tokenizer, TEXT, lambda *progress: told.append(progress))
    step = -(-count // 4)
    assert found.places == [*range(step, count, step), count]
    assert told == [(place, count) for place in (0, *found.places)]
    assert found.write.shape == whole.write.shape == (3, count)
    assert np.abs(found.correction - whole.correction).max() <= 1e-4
    assert np.abs(found.norms - whole.norms[:, np.array(found.places) - 1]).max() <= 2e-5


def test_texts_that_cannot_be_run(monkeypatch):
    model, tokenizer = loaded()
    with pytest.raises(ValueError, match="the text has no tokens"):
        trace(model, tokenizer, "")
    monkeypatch.setattr(model.args, "max_position_embeddings", 10)
    with pytest.raises(ValueError, match=r"the text is \d+ tokens; the model's window is 10: shorten it"):
        trace(model, tokenizer)


def test_spaces_that_a_tokenizer_drops_are_shown():
    words = {"▁My": 0, "▁name": 1, "!": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    wrapped = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!"))
    assert wrapped.decode([1]) == "name"
    assert trace_module._texts(wrapped, [0, 1, 2]) == [" My", " name", "!"]
