"""Fingerprints (16 hexadecimal digits) of a backbone, an adapter and a tokenizer, to check that two are the same."""

import hashlib
import json
import weakref
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.core.spread import spread_of
from mlx_deltamem.core.use import attachment_of

_DIGITS = 16
_OWN_ENDS = "_ends_of_its_own"
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
# Tokenizers differ in how they split words, digits, spaces, lines and other scripts.
_PROBE = "The year 1984, naïve café —  two  spaces\n\tline\n\n日本語 Ελληνικά 🙂 don't <|im_start|>"


@dataclass(frozen=True)
class Origin:
    """The model, adapter and tokenizer that a chat was made with. It can only be continued with the same ones.

    Attributes:
        name: The backbone's name, for errors.
        backbone, adapter, tokenizer: Fingerprints.
    """

    name: str
    backbone: str
    adapter: str
    tokenizer: str

    def check(self, path: Path, found: "Origin", other_tokenizer: str = "") -> None:
        """Raise ValueError if the chat in a file has another origin.

        Args:
            path: The file, for the error.
            found: The origin that is stored in the file.
            other_tokenizer: Another fingerprint that its tokenizer may have; "": none.
        """
        for kind in ("backbone", "adapter", "tokenizer"):
            theirs, ours = getattr(found, kind), getattr(self, kind)
            if theirs != ours and not (kind == "tokenizer" and theirs == other_tokenizer):
                raise ValueError(
                    f"{path} was made with another {kind} ({theirs}, of {found.name}) than this one ({ours}, of "
                    f"{self.name}); load it with the one it was made with"
                )


def origin_of(model: nn.Module, tokenizer: TokenizerWrapper) -> Origin:
    """Return the origin of chats with a model that has an adapter."""
    backbone, adapter = _model_fingerprints(model)
    return Origin(
        name=getattr(model, "backbone_name", model.model_type),
        backbone=backbone,
        adapter=adapter,
        tokenizer=tokenizer_fingerprint(tokenizer, own_ends(tokenizer)),
    )


def note_own_ends(tokenizer: TokenizerWrapper) -> None:
    """Note the end tokens of a tokenizer before others are added, which do not change its fingerprint."""
    setattr(tokenizer, _OWN_ENDS, own_ends(tokenizer))


def fingerprint_with_added_ends(tokenizer: TokenizerWrapper) -> str:
    """The fingerprint of a tokenizer with the ends that were added to it; "" if there are none.

    Earlier versions stored it in the files of chats with `--extra-eos-token`.
    """
    ends = tokenizer.eos_token_ids
    return "" if own_ends(tokenizer) == ends else tokenizer_fingerprint(tokenizer, ends)


def own_ends(tokenizer: TokenizerWrapper) -> frozenset[int]:
    """The end tokens of a tokenizer, without those that were added after `note_own_ends`."""
    noted: frozenset[int] | None = getattr(tokenizer, _OWN_ENDS, None)
    return frozenset(tokenizer.eos_token_ids) if noted is None else noted


@dataclass(frozen=True)
class _Known:
    """The fingerprints that were found for a model with these arguments, adapter and weights."""

    arguments: str
    attachment: object
    weights: list[weakref.ref[mx.array]]
    fingerprints: tuple[str, str]


def _model_fingerprints(model: nn.Module) -> tuple[str, str]:
    """The fingerprints of the backbone and the adapter of a model.

    They are made again only after a weight was replaced: they take as long as some tokens of a reply, and each turn of
    a served chat is saved. A weight that was changed in place (`weight[0] = 1`) is not noticed.
    """
    # Without a destination it returns a list.
    weights = [weight for _, weight in cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))]
    arguments, known = _json(model.args), getattr(model, "known_fingerprints", None)
    attachment = attachment_of(model)
    if (
        isinstance(known, _Known)
        and (known.arguments, known.attachment) == (arguments, attachment)
        and len(known.weights) == len(weights)
        and all(reference() is weight for reference, weight in zip(known.weights, weights, strict=True))
    ):
        return known.fingerprints
    fingerprints = backbone_fingerprint(model), adapter_fingerprint(model)
    model.known_fingerprints = _Known(arguments, attachment, [weakref.ref(weight) for weight in weights], fingerprints)
    return fingerprints


def backbone_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of the backbone of a model that has an adapter.

    It covers the configuration, the names, shapes and types of all weights, and every bit of the norms and biases. Two
    checkpoints of the same architecture therefore differ in it, although the large matrices are not read. For a model
    that is spread over several processes, it is that of the whole backbone.
    """
    spread = spread_of(model)
    if spread is not None:
        return spread.backbone
    shapes, small = backbone_facts(model)
    return facts_fingerprint(model, shapes, small)


def backbone_facts(model: nn.Module) -> tuple[dict[str, str], dict[str, mx.array]]:
    """The facts that a backbone's fingerprint is made of: by name, the shapes and types, and the norms and biases."""
    # Without a destination it returns a list.
    weights = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    backbone = {name: weight for name, weight in sorted(weights) if ".delta_mem." not in name}
    shapes = {name: f"{name} {weight.shape} {weight.dtype}" for name, weight in backbone.items()}
    return shapes, {name: weight for name, weight in backbone.items() if weight.ndim == 1}


def facts_fingerprint(model: nn.Module, shapes: Mapping[str, str], small: Mapping[str, mx.array]) -> str:
    """The fingerprint of a backbone from the facts of `backbone_facts`, perhaps of several processes."""
    return _digest([_json(model.args), *(shapes[name] for name in sorted(shapes))], dict(sorted(small.items())))


def adapter_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model's adapter: its configuration and every bit of its weights."""
    adapter = current_adapter(model)
    return _digest([adapter.config.to_json()], dict(sorted(adapter.weights.items())))


def tokenizer_fingerprint(tokenizer: TokenizerWrapper, ends: Collection[int]) -> str:
    """Return the fingerprint of a tokenizer: its size, chat template, end tokens, and the tokens of a probe text."""
    probe = tokenizer.encode(_PROBE, add_special_tokens=False)
    facts = [tokenizer.vocab_size, str(tokenizer.chat_template), sorted(ends), probe]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_DIGITS]


def update_with_arrays(digest: "hashlib._Hash", arrays: Mapping[str, mx.array]) -> None:
    """Add the names, shapes, types and every bit of arrays to a digest."""
    # As unsigned integers, because numpy has no bfloat16. One evaluation is several times faster than one per array.
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
    values = asdict(arguments) if is_dataclass(arguments) and not isinstance(arguments, type) else vars(arguments)
    return json.dumps(values, sort_keys=True, default=str)
