"""Damaged and odd models end in one error that names the file and the field."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.adapters.loading import load, load_tokenizer
from mlx_deltamem.adapters.model_config import read_config
from tests.conftest import backbone

FILES = {path.name: path.read_bytes() for path in Path(backbone()).iterdir()}
CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 521872\n"
BOM = b"\xef\xbb\xbf"


def model(folder: Path, **changed: bytes | None) -> Path:
    """The tiny backbone with some files changed; None leaves a file out. Dots in names are written as __."""
    folder.mkdir(exist_ok=True)
    names = {name.replace("__", "."): content for name, content in changed.items()}
    for name, content in (FILES | names).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def of_json(name: str, change: Callable[[dict], object]) -> bytes:
    content = json.loads(FILES[name])
    change(content)
    return json.dumps(content).encode()


def config(**fields: object) -> dict[str, bytes]:
    return {"config__json": of_json(CONFIG, lambda content: content.update(fields))}


def without(*names: str) -> dict[str, bytes]:
    return {"config__json": of_json(CONFIG, lambda content: [content.pop(name) for name in names])}


def chat_settings(**fields: object) -> dict[str, bytes]:
    return {"tokenizer_config__json": of_json(SETTINGS, lambda content: content.update(fields))}


def tokenizer(**fields: object) -> dict[str, bytes]:
    return {"tokenizer__json": of_json(TOKENIZER, lambda content: content.update(fields))}


def weights(change: Callable[[dict], object]) -> dict[str, bytes]:
    """The weights with a changed header."""
    whole = FILES[WEIGHTS]
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:end])
    change(header)
    text = json.dumps(header).encode()
    return {"model__safetensors": struct.pack("<Q", len(text)) + text + whole[end:]}


def entry(**fields: object) -> dict[str, bytes]:
    return weights(lambda header: header["model.norm.weight"].update(fields))


def without_layer(header: dict) -> None:
    for name in [name for name in header if ".layers.2." in name]:
        del header[name]


def refused(folder: Path, *expected: str, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as raised:
        load(str(folder))
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 700
    for each in expected:
        assert each in text
    return text


DAMAGED_WEIGHTS = {
    "pointer": ({"model__safetensors": POINTER}, "Git LFS"),
    "empty": ({"model__safetensors": b""}, "has 0 bytes"),
    "cut": ({"model__safetensors": FILES[WEIGHTS][:200_000]}, "was cut short"),
    "cut in the header": ({"model__safetensors": FILES[WEIGHTS][:300]}, "no header"),
    "a page": ({"model__safetensors": b"<html><body>404 Not found</body></html>"}, "no header"),
    "header a list": ({"model__safetensors": struct.pack("<Q", 2) + b"[]"}, "not a JSON object"),
    "entry null": (weights(lambda header: header.update({"model.norm.weight": None})), "model.norm.weight"),
    "dtype": (entry(dtype="F8_E5M3"), "unsupported dtype"),
    "dtype null": (entry(dtype=None), "model.norm.weight"),
    "shape": (entry(shape="x"), "model.norm.weight"),
    "negative shape": (entry(shape=[-64]), "model.norm.weight"),
    "offsets": (entry(data_offsets=[8]), "model.norm.weight"),
    # In 64 bits, the product of the shape is 0.
    "overflow": (entry(shape=[2**31 - 1, 2**31 - 1, 4]), "model.norm.weight"),
    "wider": (entry(shape=[65]), "model.norm.weight"),
}


@pytest.mark.parametrize("case", DAMAGED_WEIGHTS)
def test_damaged_weights(tmp_path, case):
    changed, problem = DAMAGED_WEIGHTS[case]
    refused(model(tmp_path / "m", **changed), str(tmp_path / "m" / WEIGHTS), problem)


def test_weights_of_another_kind_are_missing_weights(tmp_path):
    folder = model(tmp_path / "m", model__safetensors=None, pytorch_model__bin=b"PK")
    refused(folder, str(folder), "model*.safetensors", "pytorch_model.bin", error=FileNotFoundError)


def test_missing_parameters_are_one_line_that_names_the_missing_file(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    folder = model(tmp_path / "m", model__safetensors=None)
    (folder / "model-00001-of-00002.safetensors").write_bytes(weights(without_layer)["model__safetensors"])
    refused(folder, "lack 11 parameters", "model.layers.2.input_layernorm.weight", "8 more")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model-00002-of-00002.safetensors")
    refused(model(tmp_path / "n", **config(num_hidden_layers=2)), "11 parameters", "no model of its config.json has")


def test_weights_that_are_no_floating_point_numbers(tmp_path):
    folder = model(tmp_path / "m", **entry(dtype="I32"))
    refused(folder, str(folder), "int32", "model.norm")


DAMAGED_CONFIGS = {
    "empty": ({"config__json": b""}, "is empty"),
    "cut": ({"config__json": FILES[CONFIG][:100]}, "not JSON"),
    "a list": ({"config__json": b"[]"}, "list"),
    "null": ({"config__json": b"null"}, "null"),
    "deep": ({"config__json": b"[" * 100_000}, "not JSON"),
    "pointer": ({"config__json": POINTER}, "Git LFS"),
    "byte order mark": ({"config__json": BOM + FILES[CONFIG]}, "byte order mark"),
    "latin-1": ({"config__json": b'{"model_type": "\xe4"}'}, "UTF-8"),
    "no model_type": (without("model_type"), "model_type"),
    "model_type null": (config(model_type=None), "model_type null"),
    "model_type a list": (config(model_type=["qwen3"]), "model_type ['qwen3']"),
    "model_type unknown": (config(model_type="nope"), "nope"),
    "model_type not a model": (config(model_type="base"), "base"),
    "no hidden_size": (without("hidden_size"), "no hidden_size"),
    "several missing": (without("hidden_size", "vocab_size"), "no hidden_size, vocab_size"),
    "another architecture": (config(model_type="mamba"), "state_size"),
    "hidden_size null": (config(hidden_size=None), "hidden_size null"),
    "hidden_size a text": (config(hidden_size="64"), "hidden_size '64'"),
    "hidden_size a list": (config(hidden_size=[64]), "hidden_size [64]"),
    "hidden_size a fraction": (config(hidden_size=64.5), "hidden_size 64.5"),
    "hidden_size zero": (config(hidden_size=0), "hidden_size 0"),
    "hidden_size huge": (config(hidden_size=10**30), "hidden_size 1000"),
    "heads zero": (config(num_attention_heads=0), "num_attention_heads 0"),
    "heads null": (config(num_key_value_heads=None), "num_key_value_heads null"),
    # A list of so many layers does not fit into the memory.
    "layers": (config(num_hidden_layers=10**9), "num_hidden_layers 1000000000"),
    # MLX notices only when the model runs.
    "rope_theta a text": (config(rope_theta="x"), "rope_theta 'x'"),
    "NaN": (config(rms_norm_eps=float("nan")), "rms_norm_eps NaN"),
    "odd infinity": (config(rms_norm_eps={"__float__": []}), "rms_norm_eps"),
    "tie a text": (config(tie_word_embeddings="x"), "tie_word_embeddings"),
    "eos a text": (config(eos_token_id="x"), "eos_token_id 'x'"),
    "eos texts": (config(eos_token_id=["x"]), "eos_token_id ['x']"),
    "text_config": (config(text_config=None), "text_config null"),
    "rope_scaling": (config(rope_scaling="x"), "rope_scaling 'x'"),
    "architectures": (config(architectures=5), "architectures 5"),
    "quantization a text": (config(quantization="x"), "quantization 'x'"),
    "quantization a list": (config(quantization=[]), "quantization []"),
    "quantization empty": (config(quantization={}), "no group_size in quantization"),
    "no bits": (config(quantization={"group_size": 64}), "no bits in quantization"),
    "no method": (config(quantization_config={"a": 1}), "quant_method"),
    "awq": (config(quantization_config={"quant_method": "awq"}), "config.json"),
    "program": (config(model_file="x.py"), "trust_remote_code"),
}


@pytest.mark.parametrize("case", DAMAGED_CONFIGS)
def test_damaged_configs(tmp_path, case):
    changed, problem = DAMAGED_CONFIGS[case]
    refused(model(tmp_path / "m", **changed), str(tmp_path / "m" / CONFIG), problem)


def test_a_folder_in_the_place_of_the_config(tmp_path):
    folder = model(tmp_path / "m", config__json=None)
    (folder / CONFIG).mkdir()
    refused(folder, CONFIG, error=FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("generation_config.json", b"[]", "list"),
        ("generation_config.json", b'{"eos_token_id": "zz"}', "eos_token_id 'zz'"),
        ("hf_quant_config.json", b"[1]", "list"),
        ("hf_quant_config.json", b"{", "not JSON"),
        ("special_tokens_map.json", b"[]", "list"),
        ("added_tokens.json", b"{", "not JSON"),
        ("chat_template.jinja", b"\xe4\xff", "UTF-8"),
    ],
)
def test_other_damaged_files(tmp_path, name, content, problem):
    folder = model(tmp_path / "m")
    (folder / name).write_bytes(content)
    refused(folder, str(folder / name), problem)


DAMAGED_TOKENIZERS = {
    "empty": (TOKENIZER, {"tokenizer__json": b""}, "is empty"),
    "cut": (TOKENIZER, {"tokenizer__json": FILES[TOKENIZER][:3000]}, "not JSON"),
    "a list": (TOKENIZER, {"tokenizer__json": b"[]"}, "list"),
    "pointer": (TOKENIZER, {"tokenizer__json": POINTER}, "Git LFS"),
    "byte order mark": (TOKENIZER, {"tokenizer__json": BOM + FILES[TOKENIZER]}, "byte order mark"),
    "no fields": (TOKENIZER, {"tokenizer__json": b"{}"}, "no model"),
    "model null": (TOKENIZER, tokenizer(model=None), "model"),
    "model odd": (TOKENIZER, tokenizer(model={"type": "Nope"}), "a model that"),
    "version": (TOKENIZER, tokenizer(version=5), "version"),
    "added tokens null": (TOKENIZER, tokenizer(added_tokens=None), "added_tokens null"),
    "added tokens odd": (TOKENIZER, tokenizer(added_tokens=[{"id": 1}]), "added_tokens that"),
    "normalizer": (TOKENIZER, tokenizer(normalizer=5), "normalizer"),
    "pre-tokenizer": (TOKENIZER, tokenizer(pre_tokenizer=5), "pre_tokenizer"),
    "post-processor": (TOKENIZER, tokenizer(post_processor={"type": "Nope"}), "post_processor"),
    "decoder": (TOKENIZER, tokenizer(decoder={"type": "Nope"}), "decoder"),
    "settings a list": (SETTINGS, {"tokenizer_config__json": b"[]"}, "list"),
    "settings byte order mark": (SETTINGS, {"tokenizer_config__json": BOM + FILES[SETTINGS]}, "byte order mark"),
    "template type": (SETTINGS, chat_settings(chat_template_type="nope"), "chat_template_type 'nope'"),
    "template type path": (SETTINGS, chat_settings(chat_template_type="..utils"), "chat_template_type '..utils'"),
    "parser type": (SETTINGS, chat_settings(tool_parser_type=5), "tool_parser_type 5"),
    "template number": (SETTINGS, chat_settings(chat_template=5), "chat_template 5"),
    "template texts": (SETTINGS, chat_settings(chat_template=["x"]), "chat_template ['x']"),
    "template nameless": (SETTINGS, chat_settings(chat_template=[{"name": "default"}]), "chat_template"),
    "class": (SETTINGS, chat_settings(tokenizer_class=5), "tokenizer_class 5"),
    "length": (SETTINGS, chat_settings(model_max_length="x"), "model_max_length 'x'"),
    "eos": (SETTINGS, chat_settings(eos_token={"a": 1}), "eos_token {'a': 1}"),
    "special tokens": (SETTINGS, chat_settings(additional_special_tokens=[5]), "additional_special_tokens [5]"),
    "added tokens": (SETTINGS, chat_settings(added_tokens_decoder={"x": {}}), "added_tokens_decoder"),
}


@pytest.mark.parametrize("case", DAMAGED_TOKENIZERS)
def test_damaged_tokenizers(tmp_path, case):
    name, changed, problem = DAMAGED_TOKENIZERS[case]
    folder = model(tmp_path / "m", **changed)
    text = refused(folder, str(folder / name), problem)
    # Without the model, it is the same.
    with pytest.raises(ValueError) as raised:
        load_tokenizer(folder)
    assert str(raised.value) == text


def test_a_model_without_a_tokenizer(tmp_path):
    folder = model(tmp_path / "m", tokenizer__json=None, tokenizer_config__json=None)
    refused(folder, str(folder), TOKENIZER, error=FileNotFoundError)


def test_a_tokenizer_that_makes_no_tokens(tmp_path):
    special = {"SpecialToken": {"id": "<x>", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [special], "pair": [], "special_tokens": {}}
    refused(model(tmp_path / "m", **tokenizer(post_processor=processor)), str(tmp_path / "m"), "no tokens")


def test_odd_fields_of_models_that_can_be_loaded(tmp_path):
    folder = model(tmp_path / "m", **config(quantization=None, eos_token_id=[2], rope_scaling={}, architectures=None))
    (folder / "generation_config.json").write_bytes(b"{")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    loaded, _ = load(folder)
    assert mx.array_equal(loaded.model.norm.weight, load(backbone())[0].model.norm.weight)
    # A field can be given instead.
    model(folder, **config(rope_theta="x"))
    load(folder, model_config={"rope_theta": 1e6})


# As in the config.json of Hunyuan-A13B.
BY_LAYER = {
    "model_type": "hunyuan",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "moe_topk": [2, 1],
    "num_experts": 4,
    "num_shared_expert": [1, 1],
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "use_cla": False,
    "cla_share_factor": 2,
}


@pytest.mark.parametrize(
    ("topk", "problem"),
    [([2, 1], None), ([2, 1, 1], None), ([2], "moe_topk [2]"), ([2, "x"], "'x'"), ([2, True], "moe_topk"), ([], "[]")],
)
def test_a_number_for_each_layer_may_be_in_the_place_of_one(tmp_path, topk, problem):
    (tmp_path / CONFIG).write_text(json.dumps({**BY_LAYER, "moe_topk": topk}))
    if problem is None:
        assert read_config(tmp_path)["moe_topk"] == topk
        return
    with pytest.raises(ValueError, match="expected an integer") as error:
        read_config(tmp_path)
    assert problem in str(error.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def check_read_or_refused(folder: Path) -> None:
    try:
        load(folder)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
        assert str(folder) in str(error)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([CONFIG, TOKENIZER, SETTINGS]), st.data())
def test_any_value_of_a_field_is_read_or_refused_in_one_line(tmp_path, name, data):
    content = json.loads(FILES[name])
    place, field = content, data.draw(st.sampled_from(sorted(content)))
    if isinstance(content[field], dict) and content[field] and data.draw(st.booleans()):
        place = content[field]
        field = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        place[field] = data.draw(ANYTHING)
    else:
        del place[field]
    folder = model(tmp_path / "m")
    (folder / name).write_text(json.dumps(content))
    check_read_or_refused(folder)
    (folder / name).write_bytes(FILES[name])


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, name, data):
    whole = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, min(len(whole), 4000) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, 4, 100, 1000, len(whole) // 2]))
    folder = model(tmp_path / "m")
    (folder / name).write_bytes(whole[:cut])
    check_read_or_refused(folder)
    (folder / name).write_bytes(FILES[name])
