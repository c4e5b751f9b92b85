"""Adapters as folders: model cards are left alone by the library's functions, and kept up to date by the commands'."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
from mlx_deltamem.core.adapter import CARD_FILE, WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.training.prepare import prepare_model
from mlx_deltamem.training.settings import Settings
from tests.conftest import adapter, backbone

CARD = "---\nbase_model: Qwen/Qwen3-0.6B\nlicense: mit\n---\nBees.\n"


@pytest.mark.slow
def test_loading_an_adapter_imports_neither_cards_nor_yaml(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "memory")
    # huggingface_hub imports yaml itself, so that only the modules of the package are looked at.
    code = (
        "import sys, mlx_deltamem\n"
        "mlx_deltamem.load_adapter(sys.argv[1])\n"
        "modules = {name: module for name, module in sys.modules.items() if name.startswith('mlx_deltamem')}\n"
        "found = [name for name, module in modules.items() if '.card' in name or hasattr(module, 'yaml')]\n"
        "print('mlx_deltamem.adapters.folder' in modules, found)"
    )
    for folder in (adapter(), str(tmp_path / "memory")):
        ended = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        assert ended.stdout == "True []\n"


def test_the_library_writes_no_card_and_leaves_the_one_that_is_there(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]
    save_with_card(load_adapter(adapter()), tmp_path)
    card = (tmp_path / CARD_FILE).read_text()
    save_adapter(load_adapter(adapter("qwen3_msw4")), tmp_path)
    assert (tmp_path / CARD_FILE).read_text() == card
    save_with_card(load_adapter(tmp_path), tmp_path)
    assert (tmp_path / CARD_FILE).read_text() != card


def test_only_the_commands_functions_read_a_card(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path)
    (tmp_path / CARD_FILE).write_text(CARD)
    plain, described = load_adapter(tmp_path).metadata, load_with_card(tmp_path).metadata
    assert described == {**plain, "base_model": "Qwen/Qwen3-0.6B", "license": "mit"}
    assert "license" not in plain


@pytest.mark.parametrize(("models", "found"), [("[Qwen/Qwen3-0.6B]", "Qwen/Qwen3-0.6B"), ("[a/b, c/d]", None)])
def test_a_card_may_name_its_model_in_a_list(models, found, tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path)
    (tmp_path / CARD_FILE).write_text(f"---\nbase_model: {models}\n---\n")
    assert load_with_card(tmp_path).metadata.get("base_model") == found


@pytest.mark.parametrize("name", ["memory_q_proj", "delta_q_proj"])
def test_a_tensor_that_is_one_number_is_refused(name, tmp_path):
    good = load_adapter(adapter())
    key = f"model.layers.0.self_attn.{name}"
    assert key in good.weights
    save_adapter(good, tmp_path)
    mx.save_safetensors(str(tmp_path / WEIGHTS_FILE), {**good.weights, key: mx.array(1.0)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(\)"):
        load_adapter(tmp_path)


def test_numbers_that_mlx_cannot_read_are_named(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path)
    header = b'{"model.layers.0.self_attn.beta_proj": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}'
    (tmp_path / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="beta_proj as F64; save it again as F32, BF16 or F16"):
        load_adapter(tmp_path)


def test_a_path_that_is_not_utf_8_is_named_as_such(tmp_path):
    other = Path(os.fsdecode(bytes(tmp_path) + b"/a\xffb"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        save_adapter(load_adapter(adapter()), other)
    save_adapter(load_adapter(adapter()), tmp_path / "good")
    (tmp_path / "good").rename(other)
    with pytest.raises(ValueError, match="is not UTF-8"):
        load_adapter(other)


def test_training_starts_from_an_adapter_with_its_card(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path)
    (tmp_path / CARD_FILE).write_text(CARD)
    model, _ = prepare_model(Settings(backbone(), "data", str(tmp_path)))
    assert current_adapter(model).metadata["license"] == "mit"
