"""Short texts that tell one model, adapter or tokenizer from another."""

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.attach import current_adapter

_DIGITS = 16
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
# Words, digits, spaces, lines, other scripts: what tokenizers differ in.
_PROBE = "The year 1984, naïve café —  two  spaces\n\tline\n\n日本語 Ελληνικά 🙂 don't <|im_start|>"


@dataclass(frozen=True)
class Origin:
    """What a chat was made with; the fingerprints must be the same to go on with it.

    Attributes:
        name: The backbone's name, for messages.
        backbone, adapter, tokenizer: Fingerprints.
    """

    name: str
    backbone: str
    adapter: str
    tokenizer: str

    def check(self, path: Path, found: "Origin") -> None:
        """Raise ValueError unless a file's chat was made with the same."""
        for kind in ("backbone", "adapter", "tokenizer"):
            theirs, ours = getattr(found, kind), getattr(self, kind)
            if theirs != ours:
                raise ValueError(
                    f"{path} was made with another {kind} ({theirs}, of {found.name}) than this one ({ours}, of "
                    f"{self.name}); load it with the one it was made with"
                )


def origin_of(model: nn.Module, tokenizer: TokenizerWrapper) -> Origin:
    """What a chat with an attached model is made with."""
    return Origin(
        name=getattr(model, "backbone_name", model.model_type),
        backbone=backbone_fingerprint(model),
        adapter=adapter_fingerprint(model),
        tokenizer=tokenizer_fingerprint(tokenizer),
    )


def backbone_fingerprint(model: nn.Module) -> str:
    """Of an attached model's backbone: its configuration, and the names, shapes and smallest of its weights.

    Two checkpoints of one shape differ in it unless their norms and biases are the same to the bit.
    """
    digest = hashlib.sha256(_json(model.args).encode())
    for name, weight in sorted(tree_flatten(model.parameters())):
        if ".delta_mem." not in name:
            digest.update(f"{name} {weight.shape} {weight.dtype}".encode())
            if weight.ndim == 1:
                digest.update(array_bytes(weight))
    return digest.hexdigest()[:_DIGITS]


def adapter_fingerprint(model: nn.Module) -> str:
    """Of an attached model's adapter: its configuration and every bit of its weights."""
    adapter = current_adapter(model)
    digest = hashlib.sha256(adapter.config.to_json().encode())
    for name, weight in sorted(adapter.weights.items()):
        digest.update(f"{name} {weight.shape} {weight.dtype}".encode())
        digest.update(array_bytes(weight))
    return digest.hexdigest()[:_DIGITS]


def tokenizer_fingerprint(tokenizer: TokenizerWrapper) -> str:
    """Of a tokenizer: its size, its template, and what it makes of a text that tells tokenizers apart."""
    ends = sorted(tokenizer.eos_token_ids)
    probe = tokenizer.encode(_PROBE, add_special_tokens=False)
    facts = [tokenizer.vocab_size, str(tokenizer.chat_template), ends, probe]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_DIGITS]


def array_bytes(array: mx.array) -> bytes:
    """The bits of an array; numpy has no bfloat16."""
    return np.array(array.view(_UNSIGNED[array.dtype.size])).tobytes() if array.size else b""


def _json(arguments: object) -> str:
    values = asdict(arguments) if is_dataclass(arguments) else vars(arguments)
    return json.dumps(values, sort_keys=True, default=str)
