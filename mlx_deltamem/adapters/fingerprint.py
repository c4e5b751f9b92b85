"""Short texts that tell one model, adapter or tokenizer from another."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.model import current_adapter

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
    weights = dict(sorted(tree_flatten(model.parameters())))
    backbone = {name: weight for name, weight in weights.items() if ".delta_mem." not in name}
    shapes = [f"{name} {weight.shape} {weight.dtype}" for name, weight in backbone.items()]
    small = {name: weight for name, weight in backbone.items() if weight.ndim == 1}
    return _digest([_json(model.args), *shapes], small)


def adapter_fingerprint(model: nn.Module) -> str:
    """Of an attached model's adapter: its configuration and every bit of its weights."""
    adapter = current_adapter(model)
    return _digest([adapter.config.to_json()], dict(sorted(adapter.weights.items())))


def tokenizer_fingerprint(tokenizer: TokenizerWrapper) -> str:
    """Of a tokenizer: its size, its template, and what it makes of a text that tells tokenizers apart."""
    ends = sorted(tokenizer.eos_token_ids)
    probe = tokenizer.encode(_PROBE, add_special_tokens=False)
    facts = [tokenizer.vocab_size, str(tokenizer.chat_template), ends, probe]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_DIGITS]


def update_with_arrays(digest: "hashlib._Hash", arrays: Mapping[str, mx.array]) -> None:
    """Add names, shapes, types and every bit of some arrays to a digest."""
    # numpy has no bfloat16. Evaluated together, which is several times faster than one by one.
    bits = [array.view(_UNSIGNED[array.dtype.size]) for array in arrays.values()]
    mx.eval(bits)
    for (name, array), words in zip(arrays.items(), bits, strict=True):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.asarray(words).tobytes())


def _digest(texts: list[str], arrays: Mapping[str, mx.array]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    update_with_arrays(digest, arrays)
    return digest.hexdigest()[:_DIGITS]


def _json(arguments: object) -> str:
    values = asdict(arguments) if is_dataclass(arguments) else vars(arguments)
    return json.dumps(values, sort_keys=True, default=str)
