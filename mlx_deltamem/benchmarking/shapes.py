"""The shapes of models that the benchmark can make with random weights."""

_Shape = dict[str, str | int | float | bool]

_COMMON: _Shape = {"model_type": "qwen3", "rms_norm_eps": 1e-6, "tie_word_embeddings": True}

# The first two are from the config.json of Qwen/Qwen3-4B-Instruct-2507 and of Qwen/Qwen3-0.6B. The others have the same
# architecture and are for smaller machines.
SHAPES: dict[str, _Shape] = {
    "qwen3-4b": _COMMON
    | {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rope_theta": 5_000_000.0,
    },
    "qwen3-0.6b": _COMMON
    | {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1_000_000.0,
    },
    "small": _COMMON
    | {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 8192,
        "max_position_embeddings": 40960,
        "rope_theta": 1_000_000.0,
    },
    "tiny": _COMMON
    | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 192,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 40960,
        "rope_theta": 1_000_000.0,
    },
}
