"""The effect of a text on the memory of an attached model, token by token and layer by layer."""

import math
import unicodedata
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import RenderableType

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache, memory
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of, observing
from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.states import StateReport, norm, squares, state_arrays, state_reports
from mlx_deltamem.sessions.reading.prefill import Progress, prefill, window
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.drift import half_life
from mlx_deltamem.show.tables import columns, count, facts, number, span

# The states can be read between calls of the model only. So a text is cut into about so many calls.
_PLACES = 64
# SentencePiece writes this for a space.
_WORD = "▁"
_MOST_TOKENS = 10
# Signs in place of the characters that leave no mark.
_SIGNS = {" ": "␣", "\n": "↵", "\r": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class Trace:
    """The effect of a text on an empty memory. Arrays have a row for each of the L layers with a memory.

    Attributes:
        tokens: The ids of the text's T tokens.
        texts: The text of each token by itself.
        layers: The indices of the layers that have a memory.
        write: `[L, T]` float32, the write gate β of each token, the mean over state rows and heads.
        keep: `[L, T]` float32, the keep gate of each token, the mean over state rows and heads.
        correction: `[L, T]` float32, ‖Δo‖ / ‖o‖: the norm of the memory's correction of the layer's attention output,
            relative to the norm of that output; None if the adapter does not correct the output.
        places: The P numbers of tokens after which the states were measured.
        norms: `[L, P]` float32, the Frobenius norms of the states at these places.
        final: The reports on the states after the text.
        states: The states after the text as matrices `[H, r, r]` by layer; not in the document.
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

    def tables(self, file: str, granularity: str) -> list[RenderableType]:
        """The trace as tables: the text, the layers, and the tokens that were written most.

        Args:
            file: The file of the text.
            granularity: The adapter's `memory_write_granularity`.
        """
        kept = float(self.keep.mean())
        rows = {
            "file": file,
            "tokens": f"{len(self.tokens):,}",
            "write gate β": f"{number(self.write.mean())} in the mean, {span(self.write.flatten())}",
            "keep": f"{number(kept)} in the mean: half is left after {number(half_life(kept))} tokens",
            "states": f"measured after every {count(self.places[0], 'tokens').removeprefix('1 ')}",
        }
        if granularity != "token":
            rows["written"] = f"token by token: this adapter writes a {granularity} of messages only"
        return [facts("The text", rows), _layer_table(self), _token_table(self)]


def trace_text(model: nn.Module, tokenizer: TokenizerWrapper, text: str, progress: Progress) -> Trace:
    """Run a text through an attached model that begins with an empty memory.

    The text belongs to no message. So adapters that write the means of messages or sentences write it token by token.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        text: The text.
        progress: Called with the number of tokens done and the number of all tokens.

    Raises:
        ValueError: The text has no tokens, or more than the model's window.
    """
    ids = token_ids(tokenizer, text, special=True)
    if not ids:
        raise ValueError("the text has no tokens; expected some text")
    longest = window(model)
    if longest is not None and len(ids) > longest:
        raise ValueError(f"the text is {len(ids)} tokens; the model's window is {longest}: shorten it")
    cache = make_prompt_cache(model)
    recorder = _Recorder(cache, progress, corrects_output="o" in attachment_of(model).config.delta_heads)
    step = min(math.ceil(len(ids) / _PLACES), DEFAULT_PREFILL_STEP_SIZE)
    no_message = [-1] * len(ids)
    with observing(model, recorder.layer_ran):
        prefill(model, cache, Segments(ids, no_message, no_message), True, step, recorder.call_ended, want_logits=False)
    states = state_arrays(memory(cache))
    return Trace(
        tokens=ids,
        texts=_texts(tokenizer, ids),
        layers=list(states),
        write=recorder.by_token("write"),
        keep=recorder.by_token("keep"),
        correction=recorder.by_token("correction") if recorder.corrects_output else None,
        places=recorder.places,
        norms=np.array(recorder.norms, np.float32).T,
        final=state_reports(states),
        states=squares(states),
    )


def visible(text: str, token: int, longest: int = 12) -> str:
    """A token as a short label; spaces and line ends are written as signs.

    Args:
        text: The token's text by itself.
        token: Its id. It is the label, as `#123`, of a token without a text or with a part of a character only.
        longest: The largest number of characters in the label; a longer one ends in `…`.
    """
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return f"#{token}"
    label = "".join(_SIGNS.get(character) or _marked(character) for character in text)
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _marked(character: str) -> str:
    """The character, or its number if it leaves no mark."""
    return f"U+{ord(character):04X}" if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") else character


def _texts(tokenizer: TokenizerWrapper, ids: list[int]) -> list[str]:
    """The text of each token by itself."""
    texts = [tokenizer.decode([token]) for token in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    # Some tokenizers drop the space before a word, because they take the token for the first one of a text.
    return [
        f" {text}" if str(name).startswith(_WORD) and text[:1] != " " else text
        for name, text in zip(names, texts, strict=True)
    ]


class _Recorder:
    """Records the effect of each call of a model on the memory.

    Args:
        cache: The prompt cache of the calls.
        progress: Called as `call_ended` is.
        corrects_output: Whether the adapter corrects the attention output.

    Attributes:
        places: The numbers of tokens after each call.
        norms: For each call, the norms of the states of all layers after it.
    """

    def __init__(self, cache: PromptCache, progress: Progress, corrects_output: bool):
        self.corrects_output = corrects_output
        self.places: list[int] = []
        self.norms: list[list[float]] = []
        self._cache = cache
        self._progress = progress
        # By kind of number and layer, one array `[tokens of the call]` for each call.
        self._recorded: dict[str, dict[int, list[mx.array]]] = {}

    def layer_ran(self, layer: int, reads: Reads, output: mx.array) -> None:
        """Record the gates and the correction of one layer; it is an `Observer`."""
        found = {"write": reads.gates.write.mean(axis=(2, 3)), "keep": reads.gates.keep.mean(axis=(2, 3))}
        if self.corrects_output:
            # The correction of zeros: beside a large output the correction would lose digits to rounding.
            delta = reads.correct("o_proj", mx.zeros_like(output))
            found["correction"] = _row_norms(delta) / _row_norms(output)
        for kind, numbers in found.items():
            self._recorded.setdefault(kind, {}).setdefault(layer, []).append(numbers[0])

    def call_ended(self, done: int, total: int) -> None:
        """Record the norms of the states; it is a `Progress`, called before each call of the model and at the end."""
        if done:
            states = memory(self._cache)
            # Evaluation frees the activations of the call.
            mx.eval(self._recorded, states)
            self.places.append(done)
            self.norms.append([norm(state) for state in squares(state_arrays(states)).values()])
        self._progress(done, total)

    def by_token(self, kind: str) -> np.ndarray:
        """The recorded numbers of one kind, `[L, T]` float32."""
        return np.stack([np.concatenate(calls) for _, calls in sorted(self._recorded[kind].items())])


def _row_norms(x: mx.array) -> mx.array:
    return mx.linalg.norm(x.astype(mx.float32), axis=-1)


def _layer_table(trace: Trace) -> RenderableType:
    title = "By layer: means over the tokens, and the state after the last one"
    headings = ("layer", "β", "keep", "half-life\n(tokens)", "‖S‖", "eff.\nrank", "‖Δo‖/‖o‖\nmean", "\nlargest")
    table = columns(title, *headings)
    for row, state in enumerate(trace.final):
        correction = None if trace.correction is None else trace.correction[row]
        kept = float(trace.keep[row].mean())
        table.add_row(
            str(state.layer),
            number(trace.write[row].mean()),
            number(kept),
            number(half_life(kept)),
            number(state.norm),
            number(float(np.mean(state.effective_rank))),
            number(None if correction is None else correction.mean()),
            number(None if correction is None else correction.max()),
        )
    return table


def _token_table(trace: Trace) -> RenderableType:
    means = trace.write.mean(axis=0)
    headings = ("token", "place", "β", "highest β", "in layer")
    table = columns("Written most (β, the mean over the layers)", *headings, texts=(0,))
    for place in np.argsort(-means, kind="stable")[:_MOST_TOKENS]:
        row = int(trace.write[:, place].argmax())
        table.add_row(
            visible(trace.texts[place], trace.tokens[place]),
            str(place + 1),
            number(means[place]),
            number(trace.write[row, place]),
            str(trace.layers[row]),
        )
    return table
