"""What a text does to the memory of an attached model, token by token and layer by layer."""

import math
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache, memory
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import observing
from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.states import StateReport, state_arrays, state_reports
from mlx_deltamem.sessions.read import Progress, read, window
from mlx_deltamem.sessions.template import Segments

# The state is seen between calls of the model, so a text is cut into about this many, however short they get.
_PLACES = 64
# What SentencePiece writes for a space.
_WORD = "▁"


@dataclass(frozen=True)
class Trace:
    """What a text did to an empty memory. Arrays have a row for each layer.

    Attributes:
        tokens, texts: The text's tokens: their ids, and each one's text by itself.
        layers: The layers that have a memory.
        write: `[L, T]`, β, the write gate of each token, the mean over state rows and heads.
        keep: `[L, T]`, the share of the state that each token keeps, likewise.
        correction: `[L, T]`, ‖Δo‖ / ‖o‖: the norm of what the memory adds to the layer's attention output, relative to
            that output's; None where the adapter does not correct it.
        places: `[P]`, the numbers of tokens after which the states were looked at.
        norms: `[L, P]`, the Frobenius norms of the states then.
        final: The states after the text.
        states: The same as arrays `[H, r, r]`, by layer; not in the document.
    """

    tokens: list[int]
    texts: list[str]
    layers: list[int]
    write: np.ndarray
    keep: np.ndarray
    correction: np.ndarray | None
    places: list[int]
    norms: np.ndarray
    final: list[StateReport]
    states: dict[int, np.ndarray] = field(metadata=NOT_IN_DOCUMENT)


def trace_text(model: nn.Module, tokenizer: TokenizerWrapper, text: str, progress: Progress) -> Trace:
    """Run a text through an attached model, from an empty memory.

    The text is plain text, of no message: so adapters that write the means of messages or sentences write it token by
    token, as they write any such text.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        text: The text.
        progress: Told how many tokens are done, and of how many.

    Raises:
        ValueError: The text has no tokens, or more than the model's window.
    """
    ids = list(tokenizer.encode(text))
    if not ids:
        raise ValueError("the text has no tokens; expected some text")
    longest = window(model)
    if longest is not None and len(ids) > longest:
        raise ValueError(f"the text is {len(ids)} tokens; the model's window is {longest}: shorten it")
    cache = make_prompt_cache(model)
    watch = _Watch(cache, progress, corrects_output="o" in model.attachment.config.delta_heads)
    step = min(math.ceil(len(ids) / _PLACES), DEFAULT_PREFILL_STEP_SIZE)
    unread = [-1] * len(ids)
    with observing(model, watch.layer_ran):
        read(model, cache, Segments(ids, unread, unread), True, step, watch.call_ended, want_logits=False)
    states = state_arrays(memory(cache))
    return Trace(
        tokens=ids,
        texts=_texts(tokenizer, ids),
        layers=list(states),
        write=watch.by_token("write"),
        keep=watch.by_token("keep"),
        correction=watch.by_token("correction") if watch.corrects_output else None,
        places=watch.places,
        norms=np.array(watch.norms, np.float32).T,
        final=state_reports(states),
        states=states,
    )


def _texts(tokenizer: TokenizerWrapper, ids: list[int]) -> list[str]:
    """Each token's text by itself."""
    texts = [tokenizer.decode([token]) for token in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    # Some tokenizers drop the space before a word that they take for the first one.
    return [
        f" {text}" if str(name).startswith(_WORD) and text[:1] != " " else text
        for name, text in zip(names, texts, strict=True)
    ]


class _Watch:
    """Notes what every call of a model does to the memory.

    Args:
        cache: The prompt cache of the calls.
        progress: Told what this is told.
        corrects_output: Whether the adapter corrects the attention output.
    """

    def __init__(self, cache: PromptCache, progress: Progress, corrects_output: bool):
        self.corrects_output = corrects_output
        self.places: list[int] = []
        self.norms: list[list[float]] = []
        self._cache = cache
        self._progress = progress
        # What each layer did in the calls so far: by kind and layer, a row of numbers for each call.
        self._noted: dict[str, dict[int, list[mx.array]]] = {}

    def layer_ran(self, layer: int, reads: Reads, output: mx.array) -> None:
        """An `Observer`."""
        noted = {"write": reads.gates.write.mean(axis=(2, 3)), "keep": reads.gates.keep.mean(axis=(2, 3))}
        if self.corrects_output:
            # Of zeros, so that nothing is lost to rounding beside a large output.
            delta = reads.correct("o_proj", mx.zeros_like(output))
            noted["correction"] = _row_norms(delta) / _row_norms(output)
        for kind, numbers in noted.items():
            self._noted.setdefault(kind, {}).setdefault(layer, []).append(numbers[0])

    def call_ended(self, done: int, total: int) -> None:
        """A `Progress`, which is told before every call and after the last one."""
        if done:
            states = memory(self._cache)
            norms = mx.stack([mx.linalg.norm(state) for state in states.values()])
            # Evaluated now, so that no call's activations are kept.
            mx.eval(self._noted, norms)
            self.places.append(done)
            self.norms.append(norms.tolist())
        self._progress(done, total)

    def by_token(self, kind: str) -> np.ndarray:
        """What was noted, `[L, T]`."""
        return np.stack([np.concatenate(calls) for _, calls in sorted(self._noted[kind].items())])


def _row_norms(x: mx.array) -> mx.array:
    return mx.linalg.norm(x.astype(mx.float32), axis=-1)
