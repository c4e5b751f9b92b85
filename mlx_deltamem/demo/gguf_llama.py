"""Turn a llama-architecture GGUF file into a checkpoint folder that `mlx_lm.load` reads.

`mx.load` reads GGUF, but mlx-lm does not load the result: the tensors have other names, the rows of the query and key
projections are in another order, and configuration and tokenizer are metadata instead of files. All numbers come from
the file. Only the pre-tokenizer does not: GGUF gives its name, and this module knows one, that of SmolLM.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_deltamem.files.atomic import written_by_mlx

Tensors = dict[str, mx.array]
Metadata = dict[str, Any]  # Values: mx.array, str or list[str].
T = TypeVar("T")

CONFIG_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
TENSOR_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGML_BLOCK = 32
CONTROL_TOKEN = 3


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json for `gguf` into `folder`.

    The weights are dense float32, about 8 times the size of the file at 4 bits. A CPU computes fastest with float32.

    Raises:
        ValueError: The file is not a llama with a SmolLM tokenizer, or it lacks something that a checkpoint needs.
        OSError: A file cannot be written.
    """
    stored, metadata = load(gguf)
    tensors = dense_tensors(stored)
    config = model_config(metadata, tied="output.weight" not in tensors)
    weights = folder / "model.safetensors"
    # By its name: the folder is a temporary one.
    with written_by_mlx(Path(weights.name)):
        mx.save_safetensors(str(weights), mlx_lm_weights(tensors, config), {"format": "mlx"})
    # Not by its `save`, whose errors are no OSError.
    (folder / "tokenizer.json").write_text(tokenizer(metadata).to_str(pretty=True), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer_config(metadata))
    _write_json(folder / "config.json", config)


def load(gguf: Path) -> tuple[Tensors, Metadata]:
    """Return the tensors and the metadata of a GGUF file.

    Raises:
        ValueError: MLX cannot read the file.
    """
    try:
        loaded = mx.load(str(gguf), return_metadata=True)
    except RuntimeError as error:
        raise ValueError(f"{gguf} is damaged ({error}); expected a GGUF file: install its package again") from None
    assert isinstance(loaded, tuple)  # With metadata it is one.
    return loaded


def dense_tensors(tensors: Tensors) -> Tensors:
    """Return the tensors of a GGUF file in float32. Names and order of rows stay those of GGUF.

    `mx.load` returns a quantised matrix of shape (rows, columns) as three arrays: `weight` (rows, columns * bits / 32),
    `scales` and `biases` (rows, columns / 32).
    """
    dense = {}
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        if kind in ("scales", "biases"):
            continue
        scales, biases = tensors.get(f"{stem}.scales"), tensors.get(f"{stem}.biases")
        if kind != "weight" or scales is None or biases is None:
            dense[name] = tensor.astype(mx.float32)
            continue
        bits = tensor.shape[-1] // scales.shape[-1]
        # MLX computes in the type of the scales. In float16 it would round every weight.
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        dense[name] = mx.dequantize(tensor, scales, biases, group_size=GGML_BLOCK, bits=bits)
    return dense


def mlx_lm_weights(dense: Tensors, config: dict[str, Any]) -> Tensors:
    """Return the weights under mlx-lm's names, with query and key rows in the order of its default rotary embedding.

    Args:
        dense: The result of `dense_tensors`.
        config: The result of `model_config`.

    Raises:
        ValueError: There is a tensor that a llama does not have.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, tensor in dense.items():
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        weights[_mlx_lm_name(name)] = split_rotary_pairs(tensor, heads[part]) if part in heads else tensor
    return weights


def split_rotary_pairs(rows: mx.array, heads: int) -> mx.array:
    """Reorder rows of shape (heads * head_dim, columns) so that two rows that rotate together are half a head apart.

    GGUF stores a llama for the rotary embedding that rotates neighbouring rows (0, 1), (2, 3), ... The default of
    mlx-lm and of Hugging Face rotates rows (0, d/2), (1, d/2 + 1), ...
    """
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def model_config(metadata: Metadata, tied: bool) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        metadata: The metadata of the GGUF file.
        tied: True if the output projection is the embedding matrix.

    Raises:
        ValueError: The model is not a llama, or a number is missing.
    """
    _expect(metadata, "general.architecture", "llama")
    numbers = {ours: _number(metadata, f"llama.{theirs}") for theirs, ours in CONFIG_KEYS.items()}
    ids = {f"{name}_id": _number(metadata, f"tokenizer.ggml.{key}") for name, key in SPECIAL_TOKENS.items()}
    del ids["unk_token_id"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_traditional": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **numbers,
        **ids,
    }


def tokenizer(metadata: Metadata) -> Tokenizer:
    """Return the byte-level BPE tokenizer of the metadata. Its control tokens become special tokens.

    Raises:
        ValueError: The tokenizer is of another kind, or its pre-tokenizer is not that of SmolLM.
    """
    _expect(metadata, "tokenizer.ggml.model", "gpt2")
    _expect(metadata, "tokenizer.ggml.pre", "smollm")
    tokens = _get(metadata, "tokenizer.ggml.tokens", list)
    types = np.array(_get(metadata, "tokenizer.ggml.token_type", mx.array))
    merges = [tuple(merge.split(" ")) for merge in _get(metadata, "tokenizer.ggml.merges", list)]

    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return bpe


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """Return the content of tokenizer_config.json: the special tokens with a name, and the unchanged chat template."""
    tokens = _get(metadata, "tokenizer.ggml.tokens", list)
    special = {name: tokens[int(_number(metadata, f"tokenizer.ggml.{key}"))] for name, key in SPECIAL_TOKENS.items()}
    return {
        # The generic class. A class such as GPT2Tokenizer would add a pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _number(metadata, "llama.context_length"),
        "chat_template": _get(metadata, "tokenizer.chat_template", str),
        **special,
    }


def _mlx_lm_name(name: str) -> str:
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in LAYER_TENSOR_NAMES:
            return f"model.layers.{layer}.{LAYER_TENSOR_NAMES[part]}.weight"
        case [part, "weight"] if part in TENSOR_NAMES:
            return f"{TENSOR_NAMES[part]}.weight"
    raise ValueError(f"found tensor {name}, expected those of a plain llama: convert another GGUF file")


def _get(metadata: Metadata, key: str, kind: type[T]) -> T:
    value = metadata.get(key)
    if not isinstance(value, kind):
        found = "no" if value is None else f"a {type(value).__name__} as"
        raise ValueError(f"found {found} {key}, expected a {kind.__name__} in the metadata: convert another GGUF file")
    return value


def _number(metadata: Metadata, key: str) -> int | float:
    value = np.array(_get(metadata, key, mx.array))
    # By its shortest text: `item` would turn the float32 1e-5 into 9.999999747378752e-06.
    return float(str(value)) if value.dtype == np.float32 else value.item()


def _expect(metadata: Metadata, key: str, expected: str) -> None:
    found = _get(metadata, key, str)
    if found != expected:
        raise ValueError(f"found {key} = {found!r}, expected {expected!r}: convert another GGUF file")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
