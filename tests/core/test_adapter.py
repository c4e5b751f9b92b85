import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem import (
    Adapter,
    DeltaMemConfig,
    attach,
    current_adapter,
    load,
    load_adapter,
    make_prompt_cache,
    save_adapter,
)
from mlx_deltamem.adapters.folder import NPZ_FILE, PLAIN_FILE, TORCH_FILE
from mlx_deltamem.core.adapter import WEIGHTS_FILE, check_weights
from mlx_deltamem.core.config import CONFIG_FILE
from tests.conftest import GOLDENS, adapter, backbone, randomise
from tests.families import tiny_model

FOLDERS = sorted((GOLDENS / "adapters").iterdir())
IDS = mx.array([[5, 9, 33, 2, 17, 8]])


def logits(source: str | Path | Adapter, name: str = "qwen3-tiny") -> mx.array:
    model, _ = load(backbone(name), adapter=source)
    return model(IDS, cache=make_prompt_cache(model))


def same(a: Adapter, b: Adapter) -> bool:
    """Check that two adapters have equal configurations, tensor names, dtypes and bits."""
    words = {2: mx.uint16, 4: mx.uint32}
    return (
        a.config == b.config
        and a.weights.keys() == b.weights.keys()
        and all(tensor.dtype == b.weights[name].dtype for name, tensor in a.weights.items())
        and all(
            mx.array_equal(tensor.view(words[tensor.itemsize]), b.weights[name].view(words[tensor.itemsize]))
            for name, tensor in a.weights.items()
        )
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_saving_and_loading_keeps_every_bit_and_gives_the_same_logits(folder, tmp_path):
    original = load_adapter(folder)
    assert original.file == TORCH_FILE
    save_adapter(original, tmp_path / "saved")
    again = load_adapter(tmp_path / "saved")
    assert again.file == WEIGHTS_FILE
    assert same(original, again)
    name = "smollm3-tiny" if folder.name.startswith("smollm3") else "qwen3-tiny"
    assert mx.array_equal(logits(folder, name), logits(tmp_path / "saved", name))


def test_provenance_is_kept_through_a_second_saving(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "a")
    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")
    metadata = load_adapter(tmp_path / "b").metadata
    assert metadata["converted_from"] == TORCH_FILE
    assert len(metadata["converted_from_sha256"]) == 64
    assert metadata["format"] == "mlx"


def write_npz(folder: Path, source: str) -> None:
    """Write the weights as the other port does: float32, without the heads that are not in use."""
    original = load_adapter(source)
    unused = {f"delta_{head}_proj" for head in "qkvo" if head not in original.config.delta_heads}
    kept = {n: np.array(t.astype(mx.float32)) for n, t in original.weights.items() if n.rsplit(".", 1)[1] not in unused}
    folder.mkdir()
    np.savez(folder / NPZ_FILE, **kept)
    shutil.copy(Path(source) / CONFIG_FILE, folder / CONFIG_FILE)


@pytest.mark.parametrize("name", ["qwen3_tsw_qo", "qwen3_tsw_bf16"])
def test_the_other_ports_file_gives_the_same_logits(name, tmp_path):
    write_npz(tmp_path / "npz", adapter(name))
    assert load_adapter(tmp_path / "npz").file == NPZ_FILE
    assert mx.array_equal(logits(tmp_path / "npz"), logits(adapter(name)))
    save_adapter(load_adapter(tmp_path / "npz"), tmp_path / "saved")
    assert mx.array_equal(logits(tmp_path / "saved"), logits(adapter(name)))


def test_a_third_ports_file_is_read_where_ours_is_not(tmp_path):
    original = load_adapter(adapter())
    (tmp_path / "a").mkdir()
    mx.save_safetensors(str(tmp_path / "a" / PLAIN_FILE), dict(original.weights), {"format": "mlx"})
    shutil.copy(Path(adapter()) / CONFIG_FILE, tmp_path / "a" / CONFIG_FILE)
    found = load_adapter(tmp_path / "a")
    assert found.file == found.metadata["converted_from"] == PLAIN_FILE
    assert same(found, original)
    assert mx.array_equal(logits(tmp_path / "a"), logits(adapter()))
    save_adapter(load_adapter(adapter("qwen3_msw4")), tmp_path / "a")
    assert load_adapter(tmp_path / "a").file == WEIGHTS_FILE
    assert load_adapter(tmp_path / "a").config.num_state_heads == 4


@pytest.mark.parametrize("dtype", [">f4", "<f8"])
def test_an_npz_of_any_byte_order_and_width_is_read(dtype, tmp_path):
    write_npz(tmp_path / "npz", adapter())
    with np.load(tmp_path / "npz" / NPZ_FILE) as arrays:
        changed = {name: arrays[name].astype(dtype) for name in arrays.files}
    np.savez(tmp_path / "npz" / NPZ_FILE, **changed)
    assert mx.array_equal(logits(tmp_path / "npz"), logits(adapter()))


def test_an_npz_of_bfloat16_is_read(tmp_path):
    write_npz(tmp_path / "npz", adapter("qwen3_tsw_bf16"))
    weights = mx.load(str(tmp_path / "npz" / NPZ_FILE))
    mx.savez(str(tmp_path / "npz" / NPZ_FILE), **{name: array.astype(mx.bfloat16) for name, array in weights.items()})
    assert {tensor.dtype for tensor in load_adapter(tmp_path / "npz").weights.values()} == {mx.bfloat16}
    assert mx.array_equal(logits(tmp_path / "npz"), logits(adapter("qwen3_tsw_bf16")))


def test_the_adapter_of_a_model_can_be_saved(tmp_path):
    model = tiny_model("qwen3")
    config = DeltaMemConfig(rank=4, delta_heads=("q", "o"), couple_lambda=False, target_layers=(1,))
    attach(model, config)
    randomise(model)
    save_adapter(current_adapter(model), tmp_path / "mine")
    saved = load_adapter(tmp_path / "mine")
    assert saved.config == config
    assert not saved.weights["model.layers.1.self_attn.delta_k_proj"].any()
    assert saved.weights["model.layers.1.self_attn.delta_k_proj"].shape == (16, 4)
    other = tiny_model("qwen3")
    attach(other, tmp_path / "mine")
    assert mx.array_equal(other(IDS), model(IDS))


def test_saving_replaces_files_and_keeps_a_card_that_was_edited(tmp_path):
    first, second = load_adapter(adapter("qwen3_tsw_qo")), load_adapter(adapter("qwen3_msw4"))
    save_adapter(first, tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("mine")
    save_adapter(second, tmp_path / "a")
    assert same(load_adapter(tmp_path / "a"), second)
    assert (tmp_path / "a" / "README.md").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["README.md", WEIGHTS_FILE, CONFIG_FILE]


def broken(changes: dict[str, mx.array | None], name: str = "qwen3_tsw_qo", **config: object) -> Adapter:
    """A golden adapter with some tensors replaced, added or (None) removed; the names leave out `model.layers.`."""
    original = load_adapter(adapter(name))
    weights = dict(original.weights) | {f"model.layers.{key}": tensor for key, tensor in changes.items()}
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    return replace(original, weights=kept, config=replace(original.config, **config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"1.self_attn.memory_k_proj": None}, "memory_k_proj is missing (layer 1)"),
        ({"0.self_attn.delta_q_proj": None}, "delta_q_proj is missing (layer 0)"),
        ({"0.self_attn.lambda_proj": mx.zeros((8, 64))}, "lambda_proj is not a tensor of its configuration (layer 0)"),
        ({"0.self_attn.beta_bias": mx.zeros(4)}, "beta_bias has shape (4,), expected (8,) (layer 0)"),
        ({"2.self_attn.beta_proj": mx.full((8, 64), float("nan"))}, "beta_proj holds NaN or infinite values (layer 2)"),
        ({"2.self_attn.beta_bias": mx.full((8,), float("inf"))}, "beta_bias holds NaN or infinite values (layer 2)"),
        ({"0.self_attn.beta_bias": mx.zeros(8, mx.int32)}, "beta_bias has dtype int32, expected a float dtype"),
        ({"0.mlp.gate": mx.zeros(8)}, "1 tensors belong to no δ-mem layer"),
        ({"x.self_attn.beta_bias": mx.zeros(8)}, "1 tensors belong to no δ-mem layer"),
    ],
)
def test_an_error_names_the_problem_and_the_layer(changes, message):
    with pytest.raises(ValueError, match="does not fit") as error:
        check_weights(broken(changes))
    assert message in str(error.value)


def test_layers_that_the_configuration_leaves_out_are_named_with_and_without_a_model():
    given = broken({}, target_layers=(0, 2))
    model, _ = load(backbone())
    for check in (check_weights, lambda adapter: attach(model, adapter)):
        with pytest.raises(ValueError, match=r"the target_layers of its configuration leave out \(layer 1\)") as error:
            check(given)
        assert "no attention layer" not in str(error.value)


def test_a_number_of_a_layer_has_few_digits(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    original = load_adapter(adapter())
    (folder / CONFIG_FILE).write_text(original.config.to_json())
    far = f"model.layers.{'9' * 5000}.self_attn.beta_bias"
    mx.save_safetensors(str(folder / WEIGHTS_FILE), {**original.weights, far: mx.zeros(8)})
    with pytest.raises(ValueError, match=r"does not fit: 1 tensors belong to no δ-mem layer"):
        load_adapter(folder)


def test_unused_heads_may_be_absent():
    missing = {f"{layer}.self_attn.delta_{head}_proj": None for layer in range(3) for head in "kv"}
    assert mx.array_equal(logits(broken(missing)), logits(adapter()))


def test_all_problems_are_in_one_line_and_the_model_stays_as_it_was():
    model, _ = load(backbone())
    before = model(IDS)
    changes = {
        "0.self_attn.memory_k_proj": None,
        "1.self_attn.memory_k_proj": None,
        "2.self_attn.beta_bias": mx.full((8,), float("nan")),
        "7.self_attn.beta_bias": mx.zeros(8),
        "8.self_attn.beta_bias": mx.zeros(8),
    }
    with pytest.raises(ValueError, match="does not fit") as error:
        attach(model, broken(changes))
    message = str(error.value)
    assert "\n" not in message
    assert "memory_k_proj is missing (layers 0-1)" in message
    assert "beta_bias holds NaN or infinite values (layer 2)" in message
    assert "the model has 3 layers (layers 7-8)" in message
    assert mx.array_equal(model(IDS), before)
    assert type(model).__module__.startswith("mlx_lm.")


def test_an_adapter_for_another_hidden_size_names_both_sizes():
    with pytest.raises(ValueError, match="it belongs to a backbone of hidden size 64, not 32"):
        attach(tiny_model("qwen3"), adapter())


def test_an_adapter_for_more_layers_says_how_many_the_model_has():
    with pytest.raises(ValueError, match=r"the model has 3 layers \(layer 3\)"):
        load(backbone(), adapter=adapter("smollm3_tsw_qkvo"))


def test_an_adapter_without_any_tensor_of_a_layer(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "a")
    mx.save_safetensors(str(tmp_path / "a" / WEIGHTS_FILE), {"lora_a": mx.zeros(3)})
    with pytest.raises(ValueError, match="none of its 1 tensors belongs to a δ-mem adapter"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it lacks delta_mem_config.json and delta_mem_adapter.safetensors"),
        ([CONFIG_FILE], "it lacks delta_mem_adapter.safetensors"),
        ([WEIGHTS_FILE], "it lacks delta_mem_config.json"),
        (
            ["adapter_config.json", "adapters.safetensors"],
            "a LoRA or PEFT adapter, which mlx-lm loads with --adapter-path",
        ),
        (["config.json", "model.safetensors"], "it is a model, which goes to --model"),
    ],
)
def test_a_folder_without_an_adapter_is_refused(files, message, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="not a δ-mem adapter") as error:
        load_adapter(tmp_path)
    assert message in str(error.value)


def test_files_and_missing_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected the folder"):
        load_adapter(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_adapter(tmp_path / "nothing")


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of one adapter's weights in each format."""
    folder = tmp_path_factory.mktemp("good")
    save_adapter(load_adapter(adapter()), folder / "mlx")
    write_npz(folder / "npz", adapter())
    return {
        WEIGHTS_FILE: (folder / "mlx" / WEIGHTS_FILE).read_bytes(),
        NPZ_FILE: (folder / "npz" / NPZ_FILE).read_bytes(),
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), file=st.sampled_from([WEIGHTS_FILE, NPZ_FILE]))
def test_damaged_weights_give_a_value_error_or_an_adapter(data, file, good_bytes, tmp_path):
    content = bytearray(good_bytes[file])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # Most kinds of damage are in the headers, which are in the first bytes.
        position = data.draw(st.integers(0, min(len(content), 4000) - 1) | st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / file).write_bytes(content)
    shutil.copy(Path(adapter()) / CONFIG_FILE, tmp_path / CONFIG_FILE)
    try:
        load_adapter(tmp_path)
    except ValueError as error:
        assert "\n" not in str(error)


def test_an_npz_with_pickled_objects_is_not_unpickled(tmp_path):
    write_npz(tmp_path / "npz", adapter())
    np.savez(tmp_path / "npz" / NPZ_FILE, **{"model.layers.0.self_attn.beta_bias": np.array([print], dtype=object)})
    with pytest.raises(ValueError, match="holds object in model"):
        load_adapter(tmp_path / "npz")


def test_a_failed_save_leaves_the_old_adapter(tmp_path, monkeypatch):
    first = load_adapter(adapter())
    save_adapter(first, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    for folder in ("a", "b"):
        with pytest.raises(OSError, match="disk full"):
            save_adapter(load_adapter(adapter("qwen3_msw4")), tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_incomplete_adapter_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="beta_bias is missing"):
        save_adapter(broken({"0.self_attn.beta_bias": None}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_config_is_json_the_reference_reads(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "a")
    values = json.loads((tmp_path / "a" / CONFIG_FILE).read_text())
    assert values["delta_heads"] == ["q", "o"]
    assert values["target_modules"] == ["self_attn"]
