"""Fits the first weights of an adapter to what the frozen backbone does while it sees the text.

An adapter stands in for the backbone's attention to text that is out of view. So its first weights can be computed from
a few hundred questions whose value is in the history:

- queries: the token before a value where it is asked for, and the token before it where it was told, get like queries.
  They are the directions in which the two agree most, relative to all tokens. With a key shift, the query of the token
  before a value is the key of the value.
- values and the output head: the difference that the text makes to the layer's output where the value is asked for,
  predicted from the value's token where it was told (ridge regression, reduced to the rank of the state).
- write and read gates: two logistic regressions, which tokens are values and before which tokens values are asked for.

Training goes on from there. The idea of a start from activations is a user's (facts.md 8.2); the method is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of, observing, read_only
from mlx_deltamem.sessions.text.segments import shared_length
from mlx_deltamem.show.progress import Counted
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.fit_layer import Activations, Matrix, fitted_weights

# Tokens of each text that stand for all tokens: of the history and of the question.
_SAMPLED_TOLD, _SAMPLED_ASKED = 12, 4


@dataclass(frozen=True)
class Place:
    """A value in a history and in an answer.

    Attributes:
        told: The tokens of the pass of the history that holds the value.
        asked: The tokens of the question with its answer.
        shared: The number of tokens that both begin with, the visible start of the chat.
        begins: Where the value begins in `told`, its first and its last mention.
        answer: Where the value begins in `asked`.
        length: The number of tokens of the value.
    """

    told: list[int]
    asked: list[int]
    shared: int
    begins: tuple[int, int]
    answer: int
    length: int


def places_to_fit(config: DeltaMemConfig, episodes: Sequence[Episode], questions: int, seed: int = 0) -> list[Place]:
    """Draw questions to fit an adapter to.

    Args:
        config: The configuration of the adapter.
        episodes: Episodes with questions that have a value.
        questions: The number of questions to draw, at random.
        seed: The seed of the draw.

    Raises:
        ValueError: The configuration has no such fit, or too few questions have a value that is in the history too.
    """
    _check(config)
    rng = np.random.default_rng(seed)
    places = [place for episode in episodes for question in episode.questions if (place := _place(episode, question))]
    chosen = [places[at] for at in rng.permutation(len(places))[:questions]]
    tokens = sum(place.length for place in chosen)
    if tokens < config.rank:
        raise ValueError(
            f"{len(chosen)} questions have a value that is in the history too, {tokens} tokens in all; --fit needs at "
            f"least as many tokens as the rank, {config.rank}"
        )
    return chosen


def fit_adapter(model: nn.Module, places: Sequence[Place], seed: int = 0, progress: Counted = lambda *_: None) -> None:
    """Replace the weights of a new adapter by fitted ones.

    Args:
        model: An attached model; its adapter's weights are replaced.
        places: The places to fit to, by `places_to_fit`.
        seed: The seed of the draw of the tokens that stand for all.
        progress: Called after each place.
    """
    config = attachment_of(model).config
    activations = _activations(model, places, np.random.default_rng(seed), progress)
    for layer, attention in attached_attention(model).items():
        weights = fitted_weights(activations[layer], config)
        attention.delta_mem.update({name: mx.array(weight.astype(np.float32)) for name, weight in weights.items()})
        mx.eval(attention.delta_mem.parameters())


def _check(config: DeltaMemConfig) -> None:
    wanted: dict[str, tuple[object, object]] = {
        "--key-shift": (config.key_shift, True),
        "--normalize-qk": (config.normalize_qk, True),
        "--num-state-heads": (config.num_state_heads, 1),
        "--memory-write-granularity": (config.memory_write_granularity, "token"),
        "--state-update-mode": (config.state_update_mode, "standard"),
        "--couple-lambda": (config.couple_lambda, False),
        "--trainable-delta-scale": (config.trainable_delta_scale, False),
        "--delta-o-rmsnorm": (config.delta_o_rmsnorm, False),
        "o in --delta-heads": ("o" in config.delta_heads, True),
    }
    wrong = [f"{name} is {found}, expected {best}" for name, (found, best) in wanted.items() if found != best]
    if not config.alpha:
        wrong.append("--alpha is 0, expected another number")
    if wrong:
        raise ValueError(f"--fit cannot fit this adapter: {'; '.join(wrong)}")


def _place(episode: Episode, question: Question) -> Place | None:
    """Find the value of a question in the last pass of the history that has it; None if there is none."""
    begin, end = question.value
    value = question.ids[begin:end]
    if not value or begin == 0:
        return None
    for told, _ in reversed(episode.passes):
        begins = [at for at in range(1, len(told) - len(value) + 1) if told[at : at + len(value)] == value]
        if begins:
            shared = shared_length(told, question.ids[: question.answer])
            return Place(told, question.ids, shared, (begins[0], begins[-1]), begin, len(value))
    return None


def _activations(
    model: nn.Module, places: Sequence[Place], rng: np.random.Generator, progress: Counted
) -> dict[int, Activations]:
    """Run the frozen backbone over the questions, with the text in view and without."""
    parts: dict[int, list[Activations]] = {layer: [] for layer in attached_attention(model)}
    for place in places:
        steps = np.arange(place.length)
        before_told = np.concatenate([begin - 1 + steps for begin in place.begins])
        # Twice, for the first and the last mention.
        asked = np.tile(place.answer - 1 + steps, 2)
        moved = asked + len(place.told) - place.shared
        told_sample = rng.permutation(len(place.told))[:_SAMPLED_TOLD]
        asked_sample = rng.permutation(len(place.asked))[:_SAMPLED_ASKED]
        is_value = np.isin(np.concatenate([told_sample, np.full(len(asked_sample), -1)]), before_told + 1)
        in_view = dict(_layers(model, [*place.told, *place.asked[place.shared :]]))
        for layer, (alone, output) in _layers(model, place.asked):
            seen, output_in_view = in_view[layer]
            parts[layer].append(
                Activations(
                    before_told=seen[before_told],
                    before_asked=alone[asked],
                    told=seen[before_told + 1],
                    change=output_in_view[moved] - output[asked],
                    sampled=np.concatenate([seen[told_sample], alone[asked_sample]]),
                    is_value=is_value,
                )
            )
        progress("fitting the first weights", 1)
    return {layer: Activations.joined(rows) for layer, rows in parts.items()}


def _layers(model: nn.Module, ids: list[int]) -> Iterator[tuple[int, tuple[Matrix, Matrix]]]:
    """The inputs `[T, hidden]` and outputs `[T, width]` of each attached layer of the frozen backbone."""
    found: list[tuple[int, mx.array, mx.array]] = []

    def keep(layer: int, reads: Reads, output: mx.array) -> None:
        assert reads.inputs is not None
        found.append((layer, reads.inputs[0].astype(mx.float32), output[0].astype(mx.float32)))

    # An empty memory that is only read leaves the backbone as it is, bit for bit.
    with read_only(model), observing(model, keep):
        mx.eval(model(mx.array([ids])))
    for layer, inputs, output in found:
        mx.eval(inputs, output)
        yield layer, (np.array(inputs), np.array(output))
