"""Small episodes of random tokens, and small models to train on them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_deltamem import DeltaMemConfig, attach
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.terms import LossTerms
from mlx_deltamem.training.written import Written
from tests.conftest import randomise
from tests.families import tiny_model

VOCABULARY = 64
# One configuration for each variant of the computation.
VARIANTS = {
    "TSW": DeltaMemConfig(rank=3, delta_heads=("q", "o")),
    "SSW": DeltaMemConfig(rank=3, delta_heads=("q", "o"), memory_write_granularity="message_mean"),
    "sentence_mean": DeltaMemConfig(rank=3, delta_heads=("q", "o"), memory_write_granularity="sentence_mean"),
    "MSW": DeltaMemConfig(rank=2, num_state_heads=4, delta_heads=("q", "o")),
    "uncoupled lambda": DeltaMemConfig(rank=3, delta_heads=("q", "o"), couple_lambda=False),
    "lambda_outside": DeltaMemConfig(rank=3, delta_heads=("q", "o"), state_update_mode="lambda_outside"),
    "no_lambda": DeltaMemConfig(rank=3, delta_heads=("q", "o"), state_update_mode="no_lambda"),
    "not normalised": DeltaMemConfig(rank=3, delta_heads=("q", "o"), normalize_qk=False),
    "delta_o_rmsnorm": DeltaMemConfig(rank=3, delta_heads=("q", "o"), delta_o_rmsnorm=True, delta_o_rmsnorm_eps=0.01),
    "delta scale": DeltaMemConfig(rank=3, trainable_delta_scale=True, delta_scale_granularity="head"),
    "scalar gates": DeltaMemConfig(rank=2, num_state_heads=2, delta_heads=("q", "o"), rankwise_gates=False),
    "qkvo": DeltaMemConfig(rank=3),
}


def episode(history: int, *questions: tuple[int, int], seed: int = 0, context: bool = True) -> Episode:
    """An episode of random tokens.

    Args:
        history: Its tokens; messages are of 4, sentences of 2.
        questions: Of each, the tokens of its text and those of its answer; the answer's second is the value.
        seed: Decides the tokens.
        context: Whether there are whole chats, for a teacher; each has 3 more tokens.
    """
    generator = np.random.default_rng((seed, history))

    def tokens(count: int) -> list[int]:
        return generator.integers(0, VOCABULARY, count).tolist()

    texts = [(tokens(length), length - answer) for length, answer in questions]
    asked = tuple(Question(ids, begin, (begin + 1, begin + 2)) for ids, begin in texts)
    whole = [(tokens(3) + ids, begin + 3) for ids, begin in texts if context]
    places = np.arange(history)
    # The first token belongs to no message, like the tokens of a system prompt.
    messages, sentences = np.where(places > 0, places // 4, -1), np.where(places > 0, places // 2, -1)
    return Episode(
        Segments(tokens(history), messages.tolist(), sentences.tolist()),
        asked,
        tuple(Question(ids, begin, (begin + 1, begin + 2)) for ids, begin in whole),
    )


def as_read(each: Episode, written: Written = True) -> Episode:
    """The episode with its questions written as they are read."""
    return replace(each, questions=tuple(replace(question, written=written) for question in each.questions))


def half_written(each: Episode) -> Episode:
    """The episode with some tokens written, also of its questions, but not the first one of each."""
    questions = tuple(
        replace(question, written=[at % 3 > 0 for at in range(len(question.ids))]) for question in each.questions
    )
    return replace(each, questions=questions, written=[at % 3 > 0 for at in range(len(each.history.ids))])


def in_turns(each: Episode, *turns: int) -> Episode:
    """The episode with its history in passes of these lengths, whose first token is only read."""
    starts = [0, *accumulate(turns)]
    return replace(each, written=[at not in starts for at in range(len(each.history.ids))], turns=turns)


def towards(each: Episode, target: str, weight: float = 1.0) -> Episode:
    """The episode with this target and weight for its questions."""
    return replace(each, questions=tuple(replace(asked, target=target, weight=weight) for asked in each.questions))


def episode_model(config: DeltaMemConfig = VARIANTS["TSW"], terms: LossTerms | None = None) -> EpisodeModel:
    """A tiny model in training mode, with an adapter of random weights."""
    return in_training(tiny_model("qwen3"), config, terms)


def in_training(
    backbone: nn.Module, config: DeltaMemConfig, terms: LossTerms | None = None, scale: float = 0.2
) -> EpisodeModel:
    """A backbone in training mode, with an adapter of random weights with this scale."""
    attach(backbone, config)
    randomise(backbone, scale)
    freeze_all_but_adapter(backbone)
    return EpisodeModel(backbone, terms or LossTerms()).train()


def gradients(module: EpisodeModel, loss: Callable[[], mx.array]) -> dict[str, mx.array]:
    """The gradient of a loss for every trained weight."""
    names = [name for name, _ in tree_flatten(module.trainable_parameters())]

    def of_weights(weights: list[mx.array]) -> mx.array:
        module.update(tree_unflatten(list(zip(names, weights, strict=True))))
        return loss()

    weights = [weight for _, weight in tree_flatten(module.trainable_parameters())]
    found = mx.grad(of_weights)(weights)
    mx.eval(found)
    module.update(tree_unflatten(list(zip(names, weights, strict=True))))
    return dict(zip(names, found, strict=True))
