"""Options and commands of mlx-lm that this project has under another name, or not at all.

Users know mlx-lm's commands and try their options here. A hint then says what to use instead. The tables follow mlx-lm
0.31: `lora.py`, `generate.py`, `chat.py`, `convert.py`, `evaluate.py`, `benchmark.py` and `upload.py`.
"""

from collections.abc import Mapping

# Options of mlx_lm.lora that say what `mlx_deltamem.train` always does, so that they may be given.
ALWAYS = {
    "train": "this command always trains",
    "mask_prompt": "the loss is always that of the answers only",
}

_LEAVE_OUT = "leave it out"
_ADAPTER = "use --adapter for a δ-mem adapter; adapters of mlx_lm.lora are not read"
_SAMPLING = "use --temp, --top-p, --min-p and --top-k"
_DISTRIBUTED = "the model runs in one process; leave it out"
_ACTIVATIONS = "activations are not quantised; leave it out"
_MODELS = "mlx_lm.convert quantises a model; this command converts adapters and chats"
_TEMPLATE = "chats always use the model's chat template; leave it out"

# What to use instead of the options of mlx_lm.lora, under their names in a YAML file.
TRAINING: Mapping[str, str] = {
    "fine_tune_type": "there is one kind of adapter, δ-mem; leave it out",
    "optimizer": "the optimizer is AdamW; leave it out",
    "optimizer_config": "the optimizer is AdamW: use --weight-decay",
    "num_layers": "use --target-layers with the indices of the layers",
    "lora_layers": "use --target-layers with the indices of the layers",
    "lora_parameters": "use --rank and --alpha",
    "resume_adapter_file": "use --start ADAPTER to train an adapter further, or --resume to go on with a run",
    "test": "use mlx_deltamem.evaluate to test an adapter",
    "test_batches": "use mlx_deltamem.evaluate to test an adapter",
    "grad_checkpoint": "use --segment TOKENS to save memory",
    "clear_cache_threshold": _LEAVE_OUT,
    "report_to": "the reports are in metrics.jsonl in --adapter-path; leave it out",
    "project_name": "the reports are in metrics.jsonl in --adapter-path; leave it out",
    "lr_schedule": "the schedule is a warm-up and a cosine decay: use --warmup",
    "hf_dataset": "use --data with a folder or a data set on the Hub",
}

_CHATS = {
    "--adapter-path": _ADAPTER,
    "--xtc-probability": _SAMPLING,
    "--xtc-threshold": _SAMPLING,
}

# By command, what to use instead of an option of mlx-lm. The name "" stands for one word too many.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "train": {f"--{name.replace('_', '-')}": hint for name, hint in TRAINING.items()},
    "chat": {
        **_CHATS,
        "--max-kv-size": "use --history NUMBER to keep this many tokens of earlier turns",
    },
    "generate": {
        **_CHATS,
        "--image": "only text is read; leave it out",
        "--prefill-response": "a reply begins as the model begins it; leave it out",
        "--min-tokens-to-keep": _SAMPLING,
        "--use-default-chat-template": "use a tokenizer with a chat template, or --ignore-chat-template",
        "--prompt-cache-file": "use --session FILE to go on with a chat",
        "--quantize-activations": _ACTIVATIONS,
        "-qa": _ACTIVATIONS,
        "--draft-model": "a memory is written token by token, so drafts are not used; leave it out",
        "--num-draft-tokens": "a memory is written token by token, so drafts are not used; leave it out",
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
        "--adapter-path": _ADAPTER,
    },
    "benchmark": {
        "--adapter-path": _ADAPTER,
        "--pipeline": _DISTRIBUTED,
        "--quantize-activations": _ACTIVATIONS,
        "-qa": _ACTIVATIONS,
        "--delay": _LEAVE_OUT,
    },
    "upload": {"--adapter-path": "use --path FOLDER"},
}

_CHAT_COMMANDS = {"q": "/quit leaves the chat", "h": "/help lists the commands", "r": "/reset forgets the chat"}


def chat_command_hint(line: str) -> str:
    """The hint for a command of mlx_lm.chat (`q`, `h` or `r`): the command to type instead; "" for any other line."""
    hint = _CHAT_COMMANDS.get(line.strip(), "")
    return f'{hint} (between """ lines, {line.strip()} is a message)' if hint else ""
