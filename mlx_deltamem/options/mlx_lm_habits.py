"""Options and commands of mlx-lm that this project has under another name, or not at all.

Users know mlx-lm's commands and try their options here. A hint then says what to use instead. The tables follow mlx-lm
0.31: `lora.py`, `generate.py`, `chat.py`, `convert.py`, `evaluate.py`, `benchmark.py` and `upload.py`.
"""

from collections.abc import Mapping

# Options of mlx_lm.lora that name a habit of `mlx_deltamem.train`, so that they may be given.
ALWAYS = {
    "mask_prompt": "the loss is always that of the answers only",
}

_LEAVE_OUT = "leave it out"
_ACTIVATIONS = "activations are not quantised; leave it out"
_MODELS = "mlx_lm.convert quantises a model; this command converts adapters and chats"
_TEMPLATE = "chats always use the model's chat template; leave it out"

# What to use instead of the options of mlx_lm.lora, under their names in a YAML file.
TRAINING: Mapping[str, str] = {
    "fine_tune_type": "there is one kind of adapter, δ-mem; leave it out",
    "optimizer_config": "use --optimizer and --weight-decay",
    "num_layers": "use --target-layers with the indices of the layers",
    "lora_layers": "use --target-layers with the indices of the layers",
    "lora_parameters": "use --rank and --alpha",
    "resume_adapter_file": "use --start ADAPTER to train an adapter further, or --resume to go on with a run",
    "clear_cache_threshold": _LEAVE_OUT,
    "lr_schedule": "the schedule is a warm-up and a cosine decay: use --warmup",
    "hf_dataset": "use --data with a folder or a data set on the Hub",
}

# By command, what to use instead of an option of mlx-lm. The name "" stands for one word too many.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "train": {f"--{name.replace('_', '-')}": hint for name, hint in TRAINING.items()},
    "chat": {
        "--max-kv-size": "use --history NUMBER to keep this many tokens of earlier turns",
    },
    "generate": {
        "--image": "only text is read; leave it out",
        "--use-default-chat-template": "use a tokenizer with a chat template, or --ignore-chat-template",
        "--prompt-cache-file": "use --session FILE to go on with a chat",
        "--quantize-activations": _ACTIVATIONS,
        "-qa": _ACTIVATIONS,
    },
    "server": {
        **dict.fromkeys(
            ("--draft-model", "--num-draft-tokens"),
            "the server answers several requests at a time, and drafts are for one; leave it out",
        ),
    },
    "convert": {
        "--hf-path": "use --torch-path for the adapter to convert",
        "--model": "use --torch-path for the adapter to convert",
        "--trust-remote-code": "no model is loaded; leave it out",
        **dict.fromkeys(
            ("--quantize", "--q-bits", "--q-group-size", "--q-mode", "--quant-predicate", "--dequantize"), _MODELS
        ),
    },
    "evaluate": {
        "": "names go with commas between them, as in --tasks locomo,recall",
        "--output-dir": "use --output FOLDER",
        "--num-shots": "use --harness-shots",
        "--max-tokens": "use --harness-max-tokens for tasks of lm-evaluation-harness; other tasks have their limits",
        "--fewshot-as-multiturn": _TEMPLATE,
        "--apply-chat-template": _TEMPLATE,
        "--no-apply-chat-template": _TEMPLATE,
        "--chat-template-args": _TEMPLATE,
        "--confirm-run-unsafe-code": "use --harness-run-code",
    },
    "benchmark": {
        "--quantize-activations": _ACTIVATIONS,
        "-qa": _ACTIVATIONS,
        "--delay": _LEAVE_OUT,
    },
}

# The commands of mlx_lm.chat, and what they do here.
CHAT_COMMANDS = {"q": "/quit", "r": "/reset", "h": "/help"}
