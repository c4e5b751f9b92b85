"""Tiny random models of all tested model families."""

import importlib

import mlx.core as mx
import mlx.nn as nn

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
_MINISTRAL = {
    **COMMON,
    "model_type": "ministral3",
    "rope_parameters": {
        "rope_theta": 10000.0,
        "type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": 512,
        "llama_4_scaling_beta": 0.1,
    },
}

FAMILIES: dict[str, dict] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": COMMON,
    "qwen3_moe": {**COMMON, **MOE},
    "smollm3": {**COMMON, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "ministral3": _MINISTRAL,
    "mistral3": {"text_config": _MINISTRAL},
    "gemma3_text": {
        **COMMON,
        "num_hidden_layers": 3,
        "sliding_window": 6,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
    },
    "phi3": {**COMMON, "tie_word_embeddings": False},
    "gpt_oss": {
        **COMMON,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {"rope_type": "default"},
    },
    "olmo2": COMMON,
    "olmo3": {**COMMON, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_next": {
        **COMMON,
        **MOE,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "shared_expert_intermediate_size": 16,
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
    },
}


def tiny_model(family: str, bits: int | None = None) -> nn.Module:
    """Return a random model with a fixed seed, quantised if `bits` is given.

    Its weights are large enough for each token to change the output.
    """
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict({"model_type": family, **FAMILIES[family]}))
    model.eval()
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits, class_predicate=fits)
    mx.eval(model.parameters())
    return model


def fits(_: str, module: nn.Module) -> bool:
    """Return True if a module can be quantised in groups of 32."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0
