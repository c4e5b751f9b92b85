"""Folders with tiny random models that 2 and 3 ranks can split, and an adapter for each."""

import importlib
import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import save_config, save_model

from mlx_deltamem import DeltaMemConfig, attach, detach, save_adapter
from mlx_deltamem.core.model import current_adapter
from tests.conftest import backbone, randomise
from tests.families import COMMON, MOE

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# All widths can be divided by 2 and by 3, into groups of 32 for the quantised models.
_WIDTHS = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "intermediate_size": 192,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
FAMILIES = {"llama": {}, "qwen3": {}, "qwen2": {}, "qwen3_moe": {**MOE, "moe_intermediate_size": 192}}


def make_model(folder: Path, family: str, bits: int | None = None) -> Path:
    """Write a model to a folder, with the tokenizer of the golden backbone."""
    source = Path(backbone())
    fields = json.loads((source / "config.json").read_text())
    kept = {name: fields[name] for name in ("vocab_size", "eos_token_id", "bos_token_id") if name in fields}
    config = {"model_type": family, **COMMON, **_WIDTHS, **FAMILIES[family], **kept}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(11)
    model = module.Model(module.ModelArgs.from_dict(config))
    # The token that ends a reply has a logit of 0, so it is never the likeliest one, and replies are long.
    model.model.embed_tokens.weight[config["eos_token_id"]] = 0
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits, class_predicate=lambda _, part: hasattr(part, "to_quantized"))
        config["quantization"] = {"group_size": 32, "bits": bits}
    mx.eval(model.parameters())
    folder.mkdir(parents=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    for name in _TOKENIZER:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    return folder


def make_adapter(folder: Path, model: nn.Module, **fields: object) -> Path:
    """Write an adapter for a model in which every weight has an effect."""
    attach(model, DeltaMemConfig(**fields))
    mx.random.seed(3)
    randomise(model, 0.15)
    save_adapter(current_adapter(model), folder)
    detach(model)
    return folder
